"""Sharding."""

from pathlib import Path

import pytest
import torch
from torch import nn

from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from facm.distributed.wrap import check_shardable
from facm.runs import checkpointer as storage
from tests.distributed.parallel_parts import teacher_run, train_in


def test_sharding_in_one_process(tmp_path):
    """fsdp is the engine for one GPU, too: with it comes offloading."""
    plain = train_in(tmp_path / "plain", teacher_run(images=80))
    with opened(Engine(parallel="fsdp", cpu_offload=True)) as here:
        folder = train_in(tmp_path / "run", teacher_run(images=80), Engine(parallel="fsdp", cpu_offload=True), here)
    newest = folder.checkpoints()[-1]
    assert newest.is_dir()
    a, b = storage.load(newest).tensors, storage.load(plain.checkpoints()[-1]).tensors
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in b if name.startswith("network/"))
    assert Path(newest / storage.RECORD).exists()


def network(change):
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
    made = nn.ModuleDict({"inward": nn.Linear(2, 4), "blocks": blocks, "outward": nn.Linear(4, 4)})
    change(made)
    return made


def tie(a, b):
    return lambda n: setattr(n.get_submodule(a), "weight", n.get_submodule(b).weight)


def add(module, *shape, dtype=torch.float32, trained=True):
    return lambda n: n.get_submodule(module).register_parameter(
        "extra", nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=trained)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tie("blocks.2.0", "blocks.0.0"), r"blocks\.0\.0\.weight and blocks\.2\.0\.weight.*blocks\.0 and blocks\.2"),
        (tie("outward", "blocks.1.0"), r"blocks\.1\.0\.weight and outward\.weight.*blocks\.1 and what is in no block"),
        (add("outward"), r"outward\.extra of shape \(\); expected shape \(1,\)"),
        (add("blocks.1", trained=False), r"blocks\.1\.extra of shape \(\)"),
        (add("blocks.1", 0, 4), r"blocks\.1\.extra of shape \(0, 4\), which is empty"),
        (add("outward", 3, dtype=torch.float64), r"outward\.extra \(torch\.float64\) in one unit with inward\.weight"),
        (add("blocks.0.0", 3, dtype=torch.complex64), r"\(torch\.complex64\) in one unit with blocks\.0\.0\.weight"),
    ],
)
def test_what_cannot_be_sharded_is_named(change, message):
    with pytest.raises(ValueError, match=rf"engine\.parallel = 'fsdp' cannot shard .*{message}"):
        check_shardable(network(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda n: None,
        lambda n: n.update({"last": n["outward"]}),  # tied within one unit
        lambda n: n["blocks"].append(n["blocks"][0]),  # one block listed twice
        lambda n: n["blocks"][1].double(),
        add("outward", 3, dtype=torch.float64, trained=False),
        add("outward", 3, dtype=torch.int64, trained=False),
        add("outward", 1),
    ],
)
def test_what_can_be_sharded(change):
    check_shardable(network(change))

"""Compiled blocks on one rank and on two, replicated and sharded: the numbers of the eager run, and one graph for all
blocks that are alike."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from facm.distributed.block_transforms import prepare
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from facm.runs.config import Intervals
from facm.runs.folder import RunFolder
from tests.distributed.parallel_parts import Awake, call, close_logs, difference, student_run, teacher_run, train_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler"),
]

ENGINES = {"ddp": {}, "fsdp": {}, "fsdp-checkpointing": {"checkpointing": True}}


def student(root):
    """Two steps of two blocks, from random weights."""
    every = Intervals(log=16, checkpoint=32, ema_snapshots=0)
    return student_run(Path(root) / "teacher", "OpLevel", initial=None, images=32, network=Awake(2), every=every)


def compiled_runs(root):
    """The graphs that this rank made for each engine."""
    graphs = {}
    with opened(Engine(timeout_s=900)) as world:
        for name, options in ENGINES.items():
            torch.compiler.reset()
            torch._dynamo.utils.counters.clear()
            engine = Engine(parallel=name.partition("-")[0], compile="blocks", **options)
            train_in(f"{root}/{name}", student(root), engine, world)
            graphs[name] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return graphs


def test_two_ranks_with_compiled_blocks_are_one_without(tmp_path, monkeypatch):
    """To 1e-6 in weights, averages and moments, 1e-5 in losses."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    train_in(tmp_path / "teacher", teacher_run(images=16))
    eager = train_in(tmp_path / "eager", student(tmp_path))
    graphs = call(2, "tests.distributed.test_compiled", "compiled_runs", str(tmp_path), timeout=1700)
    for name in ENGINES:
        folder = RunFolder(tmp_path / name)
        assert difference(eager, folder) < 1e-6, name
        close_logs(eager, folder, 1e-5)
    for of_rank in graphs:  # value with and without a graph, and the derivative: not once more for the second block
        assert min(of_rank.values()) >= 3, graphs
        assert of_rank["ddp"] <= 4, graphs


def ddpm_pp():
    from facm.networks.ddpm_pp import DDPMpp

    return DDPMpp(size=8, channels=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.0).build()


def diffusers_unet():
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    forward = network.forward
    network.forward = lambda x, t: forward(x, t).sample
    return network


@pytest.mark.parametrize("build", [ddpm_pp, diffusers_unet])
def test_a_u_net_is_compiled_at_each_of_its_sizes(build, tmp_path, monkeypatch):
    """Value and gradients to 1e-5, at two sizes of a picture: 8 x 8 and, in the same blocks, 4 x 4."""
    from facm.core.modules import blocks_of

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    torch.compiler.reset()
    torch.manual_seed(0)
    network = build()
    for p in network.parameters():
        p.data += 0.02 * torch.randn_like(p)
    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)

    def gradients():
        network.zero_grad(set_to_none=True)
        value = network(x, t)
        value.square().mean().backward()
        return value.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    value, expected = gradients()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    prepare(list(blocks_of(network).values()), checkpointing=False, compiled=True)
    compiled, found = gradients()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= graphs + 4
    assert (compiled - value).norm() < 1e-5 * value.norm()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-5 * gradient.norm() + 1e-7, name

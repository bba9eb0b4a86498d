"""Sharding."""

from pathlib import Path

import torch

from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
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

"""facm train --dry-run: everything is checked, and what would happen is printed; nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from facm.cli.terminal import say
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from facm.distributed.process_group import World
    from facm.runs.config import Run


def dry_run(run: Run, out: Path, resume: bool, engine: Engine, world: World) -> None:
    """Print the parts of ``run`` and what it would write into ``out``.

    Raises ValueError for a folder in use, and where the teacher or the first weights cannot be loaded or do not fit.
    """
    from facm.cli.train import extent
    from facm.distributed.process_group import ALONE
    from facm.runs.folder import RunFolder
    from facm.training.loop import build

    target = _target(run, out, resume)
    dataset = run.data.open()
    network = build(run, RunFolder(out), Engine(), ALONE)  # with its first weights
    say(f"data: {type(run.data).__name__}, {len(dataset)} samples of shape {tuple(dataset.shape)}")
    say(f"network: {type(run.network).__name__}, {_parameters(network)}; initial weights: {run.initial or 'random'}")
    say(f"objective: {type(run.objective).__name__}")
    if run.teacher is not None:
        say(f"teacher: {run.teacher}, {_parameters(run.teacher.load())}")
    say(f"run: {extent(run, world)}, engine {engine.kind(world.ranks)}")
    say(f"{target}: {_files(run)}")
    say("dry run: nothing was written")


def _parameters(network: object) -> str:
    from torch import nn

    assert isinstance(network, nn.Module)
    return f"{sum(p.numel() for p in network.parameters()):,} parameters"


def _target(run: Run, out: Path, resume: bool) -> str:
    from facm.runs.folder import create_or_continue

    if resume and (out / "run.json").exists():
        folder, _ = create_or_continue(out, run)  # which only compares where there is a run
        reached = int(folder.checkpoints()[-1].stem) if folder.checkpoints() else 0
        return f"would go on in {out} from {reached} of {run.images} images"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out = {out} is in use and is never overwritten: choose another folder")
    return f"would write to {out}"


def _files(run: Run) -> str:
    every = run.every
    checkpoints = -(-run.images // every.checkpoint)
    snapshots = len(run.ema.sigma_rels) * -(-run.images // every.ema_snapshots) if every.ema_snapshots else 0
    kept = f"checkpoints: {checkpoints}, of which the newest {min(checkpoints, every.keep)} stay"
    return f"run.json, log.jsonl, samples; {kept}; EMA snapshots: {snapshots}"

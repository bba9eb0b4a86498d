"""facm train --dry-run: everything is checked, and what would happen is printed; nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from facm.core.terminal import say
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from torch import nn

    from facm.distributed.process_group import World
    from facm.runs.config import Run
    from facm.training.checks import CheckedRun


def dry_run(
    checked: CheckedRun, out: Path, recipe_file: Path | None, resume: bool, engine: Engine, world: World
) -> None:
    """Print the parts of the run and what it would write into ``out``.

    Raises RunFolderError for a folder in use, and what loading raises where the teacher, the first weights or the
    newest checkpoint cannot be loaded or do not fit.
    """
    from facm.cli.train import extent
    from facm.distributed.process_group import ALONE
    from facm.runs.folder import RunFolder
    from facm.training.build import build

    run, dataset, target = checked.run, checked.dataset, _target(checked.run, out, recipe_file, resume)
    trainer = build(checked, RunFolder(out), Engine(), ALONE, world.device)
    say(f"data: {type(run.data).__name__}, {len(dataset)} samples of shape {tuple(dataset.shape)}")
    initial = "random" if run.initial is None else run.initial
    say(f"network: {type(run.network).__name__}, {_parameters(trainer.state.network)}; initial weights: {initial}")
    say(f"objective: {type(run.objective).__name__}")
    if trainer.teacher is not None:
        say(f"teacher: {run.teacher}, {_parameters(trainer.teacher)}")
    say(f"run: {extent(run, world)}, engine {engine.kind(world.ranks)}")
    say(f"{target}: {_files(run)}")
    say("dry run: nothing was written")


def _parameters(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()):,} parameters"


def _target(run: Run, out: Path, recipe_file: Path | None, resume: bool) -> str:
    from facm.runs.checkpointer import reached
    from facm.runs.folder import RunFolder, check_unused, create_or_continue

    if resume and RunFolder(out).run_json.exists():
        folder, _ = create_or_continue(out, run)  # which only compares where there is a run
        return f"would go on in {out} from {reached(folder, run)} of {run.images} images"
    check_unused(out, recipe_file, resume)
    return f"would write to {out}"


def _files(run: Run) -> str:
    every = run.every
    checkpoints = -(-run.images // every.checkpoint)
    snapshots = len(run.ema.sigma_rels) * -(-run.images // every.ema_snapshots) if every.ema_snapshots else 0
    kept = f"checkpoints: {checkpoints}, of which the newest {min(checkpoints, every.keep)} stay"
    return f"run.json, log.jsonl, samples; {kept}; EMA snapshots: {snapshots}"

"""facm train --dry-run: everything is checked, and what would happen is printed; nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from facm.core.terminal import say
from facm.core.types import InFiles
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

    A network whose weights are in files is built on the meta device, and none of them are read. Otherwise raises what
    loading raises where the teacher, the first weights or the newest checkpoint cannot be loaded or do not fit. Raises
    RunFolderError for a folder in use.
    """
    from facm.distributed.process_group import ALONE
    from facm.runs.folder import RunFolder
    from facm.training.build import build
    from facm.training.session import extent

    run, dataset, target = checked.run, checked.dataset, _target(checked.run, out, recipe_file, resume)
    in_files = isinstance(run.network, InFiles)
    if in_files:
        network, teacher = _without_weights(run)
    else:
        trainer = build(checked, RunFolder(out), Engine(), ALONE, world.device)
        network, teacher = trainer.state.network, trainer.teacher
    say(f"data: {type(run.data).__name__}, {len(dataset)} samples of shape {tuple(dataset.shape)}")
    initial = run.initial or ("the model's" if in_files else "random")
    size = _parameters(network)
    if in_files:
        size += f", {sum(p.numel() for p in network.parameters() if p.requires_grad):,} of them trained"
    say(f"network: {type(run.network).__name__}, {size}; initial weights: {initial}")
    say(f"objective: {type(run.objective).__name__}")
    if teacher is not None:
        say(f"teacher: {run.teacher}, {_parameters(teacher)}")
    elif run.teacher is not None:
        say(f"teacher: {run.teacher}, inside the network")
    for line in _loads(run):
        say(line)
    say(f"run: {extent(run, world)}, engine {engine.kind(world.ranks)}")
    say(f"{target}: {_files(run)}")
    say("dry run: nothing was written")


def _without_weights(run: Run) -> tuple[nn.Module, nn.Module | None]:
    """The network and the teacher that is loaded beside it, on the meta device, where they fit each other."""
    from facm.runs.config import asked_teacher
    from facm.training.memory_plan.predict import teacher_without_weights
    from facm.training.memory_plan.rehearsal import built

    network, teacher = built(run.network), teacher_without_weights(run)
    if run.teacher is not None:
        asked_teacher(run, network, teacher)
    return network, teacher


def _loads(run: Run) -> list[str]:
    """The folders that weights are read from, with what is in them."""
    both: tuple[Any, ...] = (run.network, run.teacher)
    sources: list[InFiles] = [source for source in both if isinstance(source, InFiles)]
    sizes: dict[Path, list[int]] = {}
    for file in sorted({file for source in sources for file in source.files()}):
        sizes.setdefault(file.parent, []).append(file.stat().st_size)
    if sources and not sizes:
        return ["loads: no weights are there yet"]
    return [f"loads: {folder}, {len(found)} files, {sum(found) / 1e9:.2f} GB" for folder, found in sizes.items()]


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

"""The training loop, read top to bottom. The clock is images seen."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from facm.core.rng import borrowed_generators, derive
from facm.core.types import Batch
from facm.data.loader import batches
from facm.derivative.attention.dispatch import chosen, forget
from facm.distributed.engine import Engine
from facm.distributed.out_of_memory import explained
from facm.distributed.process_group import ALONE, World
from facm.runs import log
from facm.runs.config import Run
from facm.runs.folder import RunFolder, locked
from facm.training.build import build
from facm.training.checks import CheckedRun, check
from facm.training.precision import resolved_precision
from facm.training.runaway import Runaway
from facm.training.signals import stop_signals
from facm.training.state import save_checkpoint, save_ema_snapshots
from facm.training.trainer import LOOK_EVERY, Trainer, signals_of_all

AUTO = Engine()


class Reporter(Protocol):
    def __call__(self, record: dict[str, Any]) -> None:
        """Called on the first rank with every line of the log."""
        ...


class StopTraining(Exception):
    """Raised by what watches a run: it saves and ends after its step, and can be resumed."""


STOPPED = "StopTraining"
"""What stands for the signal's name where a run was stopped so."""


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    images: the clock.
    finished: whether the run came to its end; False: it was interrupted, after saving.
    length: of the run, in images.
    signal: name of the signal that interrupted it, or "StopTraining", or None.
    seconds: time that this session took.
    skipped: steps that were skipped, over all sessions.
    """

    images: int
    finished: bool
    length: int
    signal: str | None = None
    seconds: float = 0.0
    skipped: int = 0


def train(
    run: Run | CheckedRun,
    folder: RunFolder,
    *,
    report: Reporter | None = None,
    on_begin: Callable[[Trainer], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_checkpoint: Callable[[Trainer], None] | None = None,
    device: torch.device | None = None,
    engine: Engine = AUTO,
    world: World = ALONE,
) -> Outcome:
    """Train ``run`` in ``folder``, from its newest checkpoint if it has one; resuming equals no interruption.

    report: called on the first rank with every line of the log.
    on_begin: called on all ranks before the first step, at the clock that the run goes on from.
    on_step: called on the first rank after every step with the clock, which the device may not have
        reached yet; it draws no random numbers.
    on_checkpoint: called on all ranks after every checkpoint, and again for the one that the run goes on from, since
    the process may have ended before it was called.
    world: the ranks that train together, all of which call this; the first one writes and reports.

    Saves and returns on SIGTERM, SIGHUP and Ctrl-C, on whichever rank it arrives. Raises NonFiniteError after
    ``run.max_nonfinite`` skipped steps in a row, and instead of saving weights, averages or moments that are not
    finite; CheckpointError where a checkpoint cannot be written or belongs to another run, network or teacher,
    ValueError where batch and ranks do not divide or the ranks do not agree, RuntimeError where gradients are not
    synchronised, OutOfMemory with what would help.
    """
    device = device or world.device
    with contextlib.ExitStack() as stack:
        checked = check(run, engine, world.ranks)
        stack.enter_context(locked(folder) if world.first else contextlib.nullcontext())
        stop = stack.enter_context(stop_signals())
        stack.enter_context(borrowed_generators(derive(checked.run.seed, 0)))
        stack.enter_context(explained())

        trainer = build(checked, folder, engine, world, device)
        run, state, began = trainer.run, trainer.state, time.monotonic()
        runaway = Runaway()
        if world.first:
            log.rewind(folder.log, state.images)
            runaway = Runaway(log.read(folder.log))
            log.append(folder.sessions, {"images": state.images, **_session(trainer)})
        forget()
        _call_back(on_begin, trainer, stop)
        if state.images:
            _call_back(on_checkpoint, trainer, stop)
        stream = stack.enter_context(contextlib.closing(_batches(trainer)))
        first = True
        while not trainer.finished and not trainer.asked_to_stop(stop):
            trainer.step(trainer.next_of(stream))
            if world.first and on_step is not None:
                on_step(state.images)
            if first:
                _after_first_step(trainer, folder)
                first = False
            if trainer.due(run.every.log) or trainer.due(run.every.checkpoint) or state.steps % LOOK_EVERY == 0:
                trainer.look()
            if trainer.due(run.every.log):
                record = trainer.record()
                if world.first:
                    runaway.mark(record)
                    log.append(folder.log, record)
                    if report is not None:
                        _tell(report, record, stop)
            if run.every.ema_snapshots and trainer.due(run.every.ema_snapshots):
                save_ema_snapshots(state, run, folder)
            if trainer.due(run.every.checkpoint):
                save_checkpoint(state, run, folder, trainer.teacher_record)
                _call_back(on_checkpoint, trainer, stop)
        if not trainer.finished:
            trainer.look()
            save_checkpoint(state, run, folder, trainer.teacher_record)
        signals = signals_of_all(world, stop)
        seconds = time.monotonic() - began
        signal, skipped = signals[0] if signals else None, int(state.skips.total)
        return Outcome(state.images, trainer.finished, run.images, signal, seconds, skipped)


def _call_back(function: Callable[[Trainer], None] | None, trainer: Trainer, stop: list[str]) -> None:
    if function is not None:
        _tell(function, trainer, stop)


def _tell(watcher: Callable[[Any], None], what: Any, stop: list[str]) -> None:
    """Call what watches the run, which may ask it to stop. What it draws changes nothing in the run."""
    try:
        with borrowed_generators():
            watcher(what)
    except StopTraining:
        stop.append(STOPPED)


def _batches(trainer: Trainer) -> Generator[Batch]:
    """The run's batches from its clock on, read ahead by a worker on a GPU, or where the engine says so."""
    run, engine, cuda = trainer.run, trainer.engine, trainer.device.type == "cuda"
    ahead = engine.prefetch == "yes" or (engine.prefetch == "auto" and cuda)
    return batches(trainer.stream, trainer.state.images, run.images, workers=1 if ahead else 0, pin_memory=cuda)


def _after_first_step(trainer: Trainer, folder: RunFolder) -> None:
    """What is known only once a step was computed: gradients that are reduced, and which attention was used."""
    trainer.check_first_step()
    if trainer.world.first and chosen():
        log.append(folder.sessions, {"images": trainer.state.images - trainer.run.batch_size, "attention": chosen()})


def _session(trainer: Trainer) -> dict[str, Any]:
    """What the numbers' last bits depend on, besides the run."""
    device = trainer.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "device": f"{device} ({name})",
        "precision": resolved_precision(trainer.run, device),
        "threads": torch.get_num_threads(),
        "ranks": trainer.world.ranks,
        "engine": dataclasses.asdict(trainer.engine),
        "torch": torch.__version__,
    }

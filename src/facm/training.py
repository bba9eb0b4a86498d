"""The training loop: one function, read top to bottom. The clock is images seen."""

from __future__ import annotations

import contextlib
import platform
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from facm import logs
from facm.checkpoint import digest, load_strictly
from facm.conditions import Labels
from facm.data.stream import Stream
from facm.ema import EMA
from facm.guidance import NO_GUIDANCE
from facm.record import RunFolder, locked
from facm.run import Pretrained, Run
from facm.seeding import derive
from facm.state import State, Window, borrowed_generators, checkpoint, restore, save_ema_snapshots
from facm.tasks import check_task
from facm.trained import FromRun
from facm.types import Loss


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a non-finite gradient."""


class Reporter(Protocol):
    def __call__(self, record: dict[str, Any]) -> None: ...


@dataclass
class Outcome:
    """How training ended: ``finished``, or interrupted by ``signal`` after saving."""

    images: int
    finished: bool
    signal: str | None = None
    seconds: float = 0.0
    skipped: int = 0


def train(  # noqa: PLR0915 (one loop, read top to bottom)
    run: Run,
    folder: RunFolder,
    *,
    report: Reporter | None = None,
    on_checkpoint: Callable[[State], None] | None = None,
    device: torch.device | None = None,
) -> Outcome:
    """Train ``run`` in ``folder``, from its newest checkpoint if it has one; resuming equals no interruption.

    Saves and returns on SIGTERM and on Ctrl-C. Raises NonFiniteError after ``run.max_nonfinite`` skipped steps in a
    row, CheckpointError where a checkpoint cannot be written or belongs to another run, network or teacher.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with locked(folder), _stop_signals() as stop, borrowed_generators(derive(run.seed, 0)):
        check(run)
        stream = Stream(run.data.open(), run.seed, run.batch_size)
        network = run.network.build().to(device)
        if run.initial is not None:
            may_miss = getattr(network, "no_effect_as_initialised", ())
            load_strictly(network, run.initial.load().state_dict(), f"initial = {run.initial}", may_miss)
        teacher, teacher_record = _load_teacher(run.teacher, device)
        state = State(network.train(), run.optimizer.build(network), EMA(run.ema, network))
        restore(state, run, folder, teacher_record)
        logs.rewind(folder.log, state.images)
        logs.append(folder.sessions, {"images": state.images, **_session(run, device)})

        rng = torch.Generator(device)
        began = time.monotonic()
        while state.images < run.images and not stop:
            batch = stream.at(state.images).to(device)
            rng.manual_seed(derive(run.seed, 1, state.images))
            with autocast(run, device):
                loss = run.objective(network, batch, rng, teacher)
            state.optimizer.zero_grad(set_to_none=True)
            loss.total.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(network.parameters(), run.optimizer.clip)

            state.images += run.batch_size
            state.steps += 1
            for group in state.optimizer.param_groups:
                group["lr"] = run.optimizer.learning_rate(state.images, run.images)
            if bool(torch.isfinite(grad_norm) & torch.isfinite(loss.total)):
                state.optimizer.step()
                state.skipped_in_a_row = 0
            else:
                _skip(state, run, loss)
            state.ema.update(state.images, run.batch_size)

            state.window.add(loss.total, loss.terms, grad_norm)
            if _due(run.every.log, state.images, run):
                record = {"images": state.images, **state.window.means(), "lr": state.optimizer.param_groups[0]["lr"]}
                record |= {"skipped": state.skipped, "images_per_s": state.window.rate(run.batch_size)}
                logs.append(folder.log, record)
                if report is not None:
                    report(record)
                state.window = Window()
            if run.every.ema_snapshots and _due(run.every.ema_snapshots, state.images, run):
                save_ema_snapshots(state, folder)
            if _due(run.every.checkpoint, state.images, run):
                checkpoint(state, run, folder, teacher_record)
                if on_checkpoint is not None:
                    with borrowed_generators():  # a resumed run is not called back again
                        on_checkpoint(state)

        finished = state.images >= run.images
        if not finished:
            checkpoint(state, run, folder, teacher_record)
        return Outcome(state.images, finished, stop[0] if stop else None, time.monotonic() - began, state.skipped)


def autocast(run: Run, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The forward pass in the run's precision; norms, time embeddings and losses stay in float32 inside."""
    if resolved_precision(run, device) == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def resolved_precision(run: Run, device: torch.device) -> str:
    """ "fp32" or "bf16": what "auto" means on this device."""
    if run.precision != "auto":
        return run.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def _session(run: Run, device: torch.device) -> dict[str, Any]:
    """What the numbers' last bits depend on, beside the run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "device": f"{device} ({name})",
        "precision": resolved_precision(run, device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _due(every: int, images: int, run: Run) -> bool:
    """Whether the step that ended at ``images`` crossed a multiple of ``every``, or was the last."""
    return images // every > (images - run.batch_size) // every or images >= run.images


def check(run: Run) -> None:
    """What only shows once the parts are together, before anything is written. Raises ValueError."""
    dataset, objective = run.data.open(), run.objective
    Stream(dataset, run.seed, run.batch_size)
    condition = getattr(objective, "condition", None)
    if isinstance(condition, Labels) and (dataset.num_classes or 0) > condition.classes:
        raise ValueError(
            f"data with {dataset.num_classes} classes, condition = {condition}; expected Labels({dataset.num_classes})"
        )
    if condition is not None:
        condition.check(dataset.read(np.arange(1)).cond, 1)
    with torch.device("meta"):
        network = run.network.build()
    task = getattr(objective, "task", None)
    if task is not None:
        check_task(task, network)
    velocity = getattr(objective, "velocity", None)
    if getattr(velocity, "needs_teacher", False) and run.teacher is None:
        raise ValueError(
            "the objective distils, and teacher = None: give the run a teacher, or train from scratch with "
            "velocity = DataVelocity()"
        )
    guidance = getattr(velocity, "guidance", NO_GUIDANCE)
    if isinstance(run.teacher, FromRun) and guidance.scale > 1 and run.teacher.label_dropout() == 0:
        raise ValueError(
            f"guidance scale = {guidance.scale}, and the teacher {run.teacher.path} was trained with label_dropout 0: "
            "its null condition means nothing; expected scale 1, or a teacher with label_dropout > 0"
        )


def _load_teacher(
    config: Pretrained | None, device: torch.device
) -> tuple[torch.nn.Module | None, dict[str, str] | None]:
    if config is None:
        return None, None
    teacher = config.load().to(device).eval().requires_grad_(False)
    return teacher, {"identity": repr(config), "sha256": digest(teacher.state_dict())}


def _skip(state: State, run: Run, loss: Loss) -> None:
    state.skipped += 1
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row >= run.max_nonfinite:
        values = {"loss": loss.total, **loss.terms}
        bad = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
        raise NonFiniteError(
            f"{state.skipped_in_a_row} steps in a row (max_nonfinite) had a non-finite loss or gradient, the last at "
            f"{state.images} images; non-finite terms: {', '.join(bad) or 'none, only the gradient'}. Checkpoints "
            "from before, if any, are untouched; what helps: a lower optimizer.lr, a clamp, QK-norm, precision = 'fp32'"
        )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """SIGTERM and the first Ctrl-C ask the loop to save and end after its step; the second Ctrl-C does not ask."""
    stop: list[str] = []

    def ask(number: int, frame: Any) -> None:
        stop.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # only the main thread may install handlers; elsewhere signals are the caller's business
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

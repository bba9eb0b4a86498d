"""The training loop: one function, read top to bottom. The clock is images seen."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import signal
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from facm.core.hashing import digest
from facm.core.rng import borrowed_generators, derive, seed_generators
from facm.core.serialize import fingerprint
from facm.core.state_dict import load_strictly
from facm.core.types import Batch, Loss, losses
from facm.data.stream import Stream, prefetch
from facm.derivative import Chain, WholeNetwork
from facm.derivative.attention.dispatch import chosen, forget
from facm.distributed.collectives import any_of, check_same, gathered, means
from facm.distributed.engine import Engine
from facm.distributed.gradients import check_gradients, check_parameters, clip, reducing
from facm.distributed.out_of_memory import explained
from facm.distributed.process_group import ALONE, World
from facm.distributed.wrap import shard, spread, without_parameters
from facm.flow.conditions import Labels
from facm.flow.guidance import NO_GUIDANCE
from facm.flow.time_conditioning import check_task
from facm.networks.adapters.foreign import adapters_of, inner_config, unlike
from facm.pretrained.trained import FromRun
from facm.runs import log as logs
from facm.runs.config import Run
from facm.runs.ema import EMA
from facm.runs.folder import RunFolder, locked
from facm.training.state import State, Window, checkpoint, restore, save_ema_snapshots

AUTO = Engine()


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


def train(  # noqa: PLR0912, PLR0915 (one loop, read top to bottom)
    run: Run,
    folder: RunFolder,
    *,
    report: Reporter | None = None,
    on_checkpoint: Callable[[State], None] | None = None,
    device: torch.device | None = None,
    engine: Engine = AUTO,
    world: World = ALONE,
) -> Outcome:
    """Train ``run`` in ``folder``, from its newest checkpoint if it has one; resuming equals no interruption.

    world: the ranks that train together, all of which call this; the first one writes and reports. ``on_checkpoint``
    is called on all of them.
    Saves and returns on SIGTERM and on Ctrl-C, which any rank may get. Raises NonFiniteError after
    ``run.max_nonfinite`` skipped steps in a row, CheckpointError where a checkpoint cannot be written or belongs to
    another run, network or teacher, ValueError where batch and ranks do not divide or the ranks do not agree,
    RuntimeError where gradients are not synchronised, OutOfMemory with what would help.
    """
    device = device or world.device
    engine.check(run.batch_size, world.ranks)
    check_engine(run, engine)
    locking = locked(folder) if world.first else contextlib.nullcontext()
    with (
        locking,
        _stop_signals() as stop,
        borrowed_generators(derive(run.seed, 0)),
        explained(),
        contextlib.ExitStack() as ending,
    ):
        check(run)
        check_same(world, "the run's fingerprint", fingerprint(run))
        stream = Stream(run.data.open(), run.seed, run.batch_size, world.rank, world.ranks)
        network = build(run, folder, engine, world)
        teacher, teacher_record = _load_teacher(run, engine, world, device)
        wrapped = spread(network.train(), engine, world, device, resolved_precision(run, device) == "bf16")
        state = State(network, run.optimizer.build(network), EMA(run.ema, network), wrapped, world)
        state.data = getattr(stream.dataset, "fingerprint", None)
        restore(state, run, folder, teacher_record)
        if world.first:
            logs.rewind(folder.log, state.images)
            logs.append(folder.sessions, {"images": state.images, **_session(run, device, engine, world)})

        rng = torch.Generator(device)
        batches = ending.enter_context(contextlib.closing(_batches(stream, state.images, run, engine, device)))
        began, first = time.monotonic(), True
        forget()
        while state.images < run.images and not any_of(world, bool(stop)):
            batch = next(batches).to(device)
            if world.ranks > 1:
                seed_generators(derive(run.seed, 2, state.images, world.rank))
            state.optimizer.zero_grad(set_to_none=True)
            loss = _backward(run, state, _slices(batch, stream, engine.accumulate), rng, teacher, device)
            if first and world.first and chosen():  # known once it was computed
                logs.append(folder.sessions, {"images": state.images, "attention": chosen()})
            if first and world.ranks > 1:
                check_gradients(network, world, engine.find_unused)
            first = False
            grad_norm = clip(network, run.optimizer.clip)

            state.images += run.batch_size
            state.steps += 1
            for group in state.optimizer.param_groups:
                group["lr"] = run.optimizer.learning_rate(state.images, run.images)
            if any_of(world, not bool(torch.isfinite(grad_norm) & torch.isfinite(loss.total))):
                _skip(state, run, loss)
            else:
                state.optimizer.step()
                state.skipped_in_a_row = 0
            state.ema.update(state.images, run.batch_size)

            state.window.add(loss.total, loss.terms, grad_norm)
            if _due(run.every.log, state.images, run):
                record = {"images": state.images, **means(world, state.window.means())}
                record |= {"lr": state.optimizer.param_groups[0]["lr"], "skipped": state.skipped}
                record |= {"images_per_s": state.window.rate(run.batch_size)}
                if world.first:
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
        asked = [name for names in gathered(world, list(stop)) for name in names]
        return Outcome(state.images, finished, asked[0] if asked else None, time.monotonic() - began, state.skipped)


def build(run: Run, folder: RunFolder, engine: Engine, world: World) -> torch.nn.Module:
    """The network with its first weights, the same on every rank; without any where a sharded run goes on, for then
    each rank reads its part of the checkpoint and the whole is never in one place."""
    if engine.kind(world.ranks) == "fsdp" and folder.checkpoints():
        with without_parameters():
            return run.network.build()
    network = run.network.build()
    if run.initial is not None:
        may_miss, initial = getattr(network, "no_effect_as_initialised", ()), run.initial.load()
        if (theirs := adapters_of(initial)) != (ours := adapters_of(network)):
            raise ValueError(
                f"initial = {run.initial} is seen through {' of '.join(theirs) or 'no adapter'}, network through "
                f"{' of '.join(ours) or 'no adapter'}: the same weights would mean something else; expected the same"
            )
        load_strictly(network, initial.state_dict(), f"initial = {run.initial}", may_miss)
        if differ := unlike(network, initial):
            raise ValueError(
                f"initial = {run.initial} fits network, but as another function: {'; '.join(differ)}; expected the same"
            )
    if world.ranks > 1:
        check_parameters(network, world)
    return network


def _batches(stream: Stream, start: int, run: Run, engine: Engine, device: torch.device) -> Generator[Batch]:
    """The run's batches from the clock ``start`` on."""
    if engine.prefetch == "yes" or (engine.prefetch == "auto" and device.type == "cuda"):
        yield from prefetch(stream, start, run.images)
        return
    for images in range(start, run.images, run.batch_size):
        yield stream.at(images)


def _slices(batch: Batch, stream: Stream, count: int) -> list[Batch]:
    """This rank's part of the step in ``count`` micro-batches, which know their place in the whole."""
    if count == 1 and stream.ranks == 1:
        return [batch]
    size, start = len(batch.x_1) // count, stream.rank * len(batch.x_1)
    return [
        Batch(
            batch.x_1[k * size : (k + 1) * size],
            None if batch.cond is None else batch.cond[k * size : (k + 1) * size],
            start + k * size,
            stream.batch_size,
        )
        for k in range(count)
    ]


def _backward(
    run: Run, state: State, slices: list[Batch], rng: torch.Generator, teacher: Any, device: torch.device
) -> Loss:
    """Add the gradient of the mean over the whole step to the network's; the loss over this rank's part of it.

    The parts of a loss come one after the other, each freed by its backward pass before the next begins.
    """
    at = getattr(run.objective, "at", None)  # of an objective with a schedule of its own
    objective = run.objective if at is None else at(state.images)
    parts = getattr(run.objective, "parts", 1)
    same_draws = getattr(run.objective, "global_draws", False)  # for all of the step, whatever part of it is asked for
    total, terms = torch.zeros((), device=device), dict[str, list[torch.Tensor]]()
    for index, batch in enumerate(slices):
        own = () if same_draws or batch.of is None else (1 + batch.start,)
        rng.manual_seed(derive(run.seed, 1, state.images, *own))
        pending = losses(objective, state.wrapped, batch, rng, teacher)
        part = 0
        while True:
            last = index == len(slices) - 1 and part >= parts - 1
            with reducing(state.wrapped, last):
                with autocast(run, device):
                    loss = next(pending, None)
                if loss is None:
                    break
                (loss.total / len(slices)).backward()
            total = total + loss.total.detach() / len(slices)
            for name, value in loss.terms.items():
                terms.setdefault(name, []).append(value)
            part += 1
            del loss  # and what its graph still holds, before the next part's forward
        if part < parts:
            raise ValueError(f"{run.objective!r} gave {part} parts of its loss, expected parts = {parts}")
    return Loss(total, {name: values[0] if len(values) == 1 else torch.cat(values) for name, values in terms.items()})


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


def _session(run: Run, device: torch.device, engine: Engine, world: World) -> dict[str, Any]:
    """What the numbers' last bits depend on, beside the run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "device": f"{device} ({name})",
        "precision": resolved_precision(run, device),
        "threads": torch.get_num_threads(),
        "ranks": world.ranks,
        "engine": dataclasses.asdict(engine),
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
    classes = _classes(run.network)
    if isinstance(condition, Labels) and classes is not None and classes < condition.classes:
        raise ValueError(
            f"network = {run.network} has {classes} classes, condition = {condition}; expected num_classes = "
            f"{condition.classes}"
        )
    check_network(run)
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


def check_network(run: Run) -> None:
    """Raise ValueError where the network lacks what the objective asks it for: a second time, a head."""
    with torch.device("meta"):
        network = run.network.build()
    objective: Any = run.objective
    task = getattr(objective, "task", None)
    if task is not None:
        check_task(task, network)
    if hasattr(objective, "check_network"):
        objective.check_network(network)


def _classes(network: Any) -> int | None:
    """Labels that a network takes besides the null, where its configuration says it."""
    classes = getattr(inner_config(network), "num_classes", None)
    return classes if isinstance(classes, int) else None


def check_engine(run: Run, engine: Engine) -> None:
    """Raise ValueError where the run's derivative cannot be executed as asked."""
    derivative = getattr(run.objective, "derivative", None)
    naive = isinstance(derivative, WholeNetwork)
    naive |= isinstance(derivative, Chain) and not (derivative.checkpoint or derivative.op_level)
    if engine.checkpointing and naive:
        raise ValueError(
            f"engine.checkpointing = True with derivative = {derivative}: torch.func.jvp cannot be checkpointed "
            "inside, and would keep everything; expected derivative = OpLevel() or Chain(checkpoint=True)"
        )


def _load_teacher(
    run: Run, engine: Engine, world: World, device: torch.device
) -> tuple[torch.nn.Module | None, dict[str, str] | None]:
    """Frozen, sharded where the student is; and who it is, which all ranks must agree on."""
    if run.teacher is None:
        return None, None
    teacher = run.teacher.load().eval().requires_grad_(False)
    record = {"identity": repr(run.teacher), "sha256": digest(teacher.state_dict())}
    check_same(world, "the teacher", record)
    if engine.kind(world.ranks) == "fsdp":
        return shard(teacher, engine, world, device, resolved_precision(run, device) == "bf16"), record
    return teacher.to(device), record


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

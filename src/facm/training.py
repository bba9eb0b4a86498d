"""The training loop: one function, read top to bottom. The clock is images seen."""

from __future__ import annotations

import contextlib
import platform
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from facm import logs
from facm.checkpoint import Checkpoint, CheckpointError, digest, load_strictly, save
from facm.conditions import Labels
from facm.data.stream import Stream
from facm.ema import EMA
from facm.record import RunFolder, locked
from facm.run import Pretrained, Run, fingerprint
from facm.seeding import derive
from facm.tasks import check_task
from facm.trained import load_newest
from facm.types import Loss

NO_EFFECT_AS_INITIALISED = ("r_embedder.",)  # a zero-initialised second time may be new in the student


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a non-finite gradient."""


class Reporter(Protocol):
    def __call__(self, record: dict[str, Any]) -> None: ...


@dataclass
class Window:
    """Sums since the last record, kept on the device until they are asked for."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, total: Tensor, terms: Mapping[str, Tensor], grad_norm: Tensor) -> None:
        now = {"loss": total.detach(), **{name: value.mean() for name, value in terms.items()}, "grad_norm": grad_norm}
        sums = {name: self.sums[name] + value if name in self.sums else value for name, value in now.items()}
        self.sums = sums | {name: value for name, value in self.sums.items() if name not in sums}  # in the step's order
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: float(value) / self.count for name, value in self.sums.items()}

    def rate(self, batch_size: int) -> float:
        return self.count * batch_size / max(time.monotonic() - self.began, 1e-9)


@dataclass
class State:
    """All that moves during a run; a checkpoint is this and nothing else."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    images: int = 0
    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    window: Window = field(default_factory=Window)


@dataclass
class Outcome:
    """How training ended: ``finished``, or interrupted by ``signal`` after saving."""

    images: int
    finished: bool
    signal: str | None = None
    seconds: float = 0.0
    skipped: int = 0


def train(
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
    with locked(folder), _stop_signals() as stop, _global_generators(derive(run.seed, 0)):
        check(run)
        stream = Stream(run.data.open(), run.seed, run.batch_size)
        network = run.network.build().to(device)
        if run.initial is not None:
            load_strictly(
                network, run.initial.load().state_dict(), f"initial = {run.initial}", NO_EFFECT_AS_INITIALISED
            )
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
                _save_ema_snapshots(state, folder)
            if _due(run.every.checkpoint, state.images, run):
                checkpoint(state, run, folder, teacher_record)
                if on_checkpoint is not None:
                    with _global_generators():  # a resumed run is not called back again
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
            f"{state.images} images; non-finite terms: {', '.join(bad) or 'none, only the gradient'}. The last "
            "checkpoint is from before; a lower optimizer.lr, a clamp, QK-norm or precision = 'fp32' are what helps"
        )


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint(state: State, run: Run, folder: RunFolder, teacher: dict[str, str] | None) -> None:
    """Save everything, then let go of what ``run.every.keep`` no longer keeps."""
    tensors = {f"network/{name}": value for name, value in state.network.state_dict().items()}
    for sigma_rel, average in state.ema.averages.items():
        tensors |= {f"ema/{sigma_rel}/{name}": value for name, value in average.items()}
    for index, entries in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in entries.items()}
    tensors |= {f"window/{name}": value for name, value in state.window.sums.items()}
    rng_tensors, rng_meta = _global_random_state()
    tensors |= {f"rng/{name}": value for name, value in rng_tensors.items()}
    meta = {
        "images": state.images,
        "steps": state.steps,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "window": state.window.count,
        "loader": {"position": state.images, "seed": run.seed},
        "run": fingerprint(run),
        "teacher": teacher,
        "rng": rng_meta,
    }
    save(folder.checkpoint(state.images), tensors, meta)
    for old in folder.checkpoints()[: -run.every.keep]:
        old.unlink()


def restore(state: State, run: Run, folder: RunFolder, teacher: dict[str, str] | None) -> None:
    """Continue from the newest checkpoint, if there is one. Raises CheckpointError if it is not this run's."""
    if not folder.checkpoints():
        return
    file, saved = load_newest(folder)
    source = str(file)
    if saved.meta.get("run") != fingerprint(run):
        raise CheckpointError(f"{source} belongs to another recipe than this run's; resume it in its own folder")
    if saved.meta["teacher"] != teacher and (saved.meta["teacher"] or {}).get("sha256") != (teacher or {}).get(
        "sha256"
    ):
        raise CheckpointError(
            f"{source} was trained with the teacher {saved.meta['teacher']}, and the teacher is now {teacher}: "
            "a student cannot change its teacher halfway; restore the teacher's files, or start a new run"
        )
    load_strictly(state.network, saved.part("network"), source)
    for sigma_rel, average in state.ema.averages.items():
        for name, value in saved.part(f"ema/{sigma_rel}").items():
            average[name].copy_(value)
    _restore_optimizer(state.optimizer, saved, source)
    for name in ("images", "steps", "skipped", "skipped_in_a_row"):
        setattr(state, name, int(saved.meta[name]))
    device = next(state.network.parameters()).device
    state.window = Window({n: v.to(device) for n, v in saved.part("window").items()}, int(saved.meta["window"]))
    _set_global_random_state(saved.part("rng"), saved.meta["rng"])


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: Checkpoint, source: str) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.part("optimizer").items():
        index, _, name = key.partition("/")
        entries.setdefault(int(index), {})[name] = value
    current = optimizer.state_dict()
    parameters = {index for group in current["param_groups"] for index in group["params"]}
    if entries and not entries.keys() <= parameters:
        raise CheckpointError(f"{source}: its optimiser state has other parameters than this run's")
    optimizer.load_state_dict({"state": entries, "param_groups": current["param_groups"]})


def _save_ema_snapshots(state: State, folder: RunFolder) -> None:
    for sigma_rel, average in state.ema.averages.items():
        save(folder.ema_snapshot(state.images, sigma_rel), average, {"images": state.images, "sigma_rel": sigma_rel})


def _global_random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The global generators: this package draws from none of them, but a user's network or data may."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    tensors |= {"python": torch.tensor(internal, dtype=torch.int64)}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors, {"python": [version, gauss], "numpy": [name, int(position), int(has_gauss), float(cached)]}


@contextlib.contextmanager
def _global_generators(seed: int | None = None) -> Iterator[None]:
    """Borrow the global generators, seeded if asked for; afterwards they are as they were before."""
    before = _global_random_state()
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        yield
    finally:
        _set_global_random_state(*before)


def _set_global_random_state(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    version, gauss = meta["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    name, position, has_gauss, cached = meta["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


# --- small parts -----------------------------------------------------------------------------------------------------


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

"""Small parts that the tests of the training run share: runs, ways to interrupt them, and what is compared."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facm.core.rng import derive
from facm.core.types import Batch, Loss
from facm.data import Moons, Stream
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.pretrained.trained import FromRun
from facm.runs import log as logs
from facm.runs.checkpoint import load
from facm.runs.config import Intervals, Run
from facm.runs.ema import PowerEMA
from facm.runs.folder import RunFolder, create
from facm.runs.optim import AdamW, CosineDecay
from facm.training.loop import train

BATCH = 16
IMAGES = 320
# Neither the log's nor the snapshots' windows are aligned with the checkpoints.
EVERY = Intervals(log=112, checkpoint=80, ema_snapshots=64, keep=2)


def flow_run(**changes: Any) -> Run:
    """A flow-matching teacher of two moons, 20 steps long."""
    run = Run(
        network=MLP(width=16, depth=1, num_classes=3),
        data=Moons(n=200),
        objective=FlowMatching(Labels(2)),
        images=IMAGES,
        batch_size=BATCH,
        optimizer=AdamW(lr=1e-3, warmup_images=64, decay=CosineDecay(0.1)),
        ema=PowerEMA((0.05, 0.2)),
        every=EVERY,
    )
    return dataclasses.replace(run, **changes)


def facm_run(teacher: Path | str, **changes: Any) -> Run:
    """A FACM student of a finished :func:`flow_run`."""
    source = FromRun(str(teacher))
    parts = {"objective": FACM(Labels(2), TeacherVelocity(Guidance(1.5))), "teacher": source, "initial": source}
    return flow_run(**(parts | changes))


@dataclass(frozen=True)
class Untrained:
    """A teacher out of nothing."""

    config: Any

    def load(self) -> torch.nn.Module:
        return self.config.build()


@dataclass(frozen=True)
class DrawsGlobally:
    """Flow matching whose loss also depends on every global generator, which an objective should not use but may."""

    condition: Labels = Labels(2)

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any = None) -> Loss:
        loss = FlowMatching(self.condition)(network, batch, rng, teacher)
        factor = 1 + random.random() + float(np.random.rand()) + float(torch.rand(()))
        factor += 0.1 * random.gauss(0, 1) + 0.1 * float(np.random.randn())  # both keep the second one of a pair
        return Loss(loss.total * factor, loss.terms)


@dataclass(frozen=True)
class FailsAt:
    """Flow matching that is not finite in the steps that begin at these clocks: its loss, or only its gradient."""

    clocks: tuple[int, ...]
    how: str = "nan"
    condition: Labels = Labels(2)

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any = None) -> Loss:
        fails = rng.initial_seed() in {derive(0, 1, clock) for clock in self.clocks}
        loss = FlowMatching(self.condition)(network, batch, rng, teacher)
        if not fails:
            return loss
        if self.how == "nan":
            return Loss(loss.total * float("nan"), {"flow": loss.terms["flow"] * float("nan")})
        weight = next(iter(network.parameters()))
        return Loss(loss.total + (weight - weight.detach()).square().sum().add(0).sqrt(), loss.terms)  # 0 / 0


class Crash(Exception):
    """The process ends here."""


@contextmanager
def before_step(act: Callable[[int], None]) -> Iterator[None]:
    """``act(images)`` happens before each step's batch is read."""
    original = Stream.at

    def at(self: Stream, images_seen: int) -> Batch:
        act(images_seen)
        return original(self, images_seen)

    Stream.at = at  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stream.at = original  # type: ignore[method-assign]


def crash_at(clock: int) -> Callable[[int], None]:
    def act(images: int) -> None:
        if images == clock:
            raise Crash

    return act


def signal_at(clock: int, number: signal.Signals, times: int = 1) -> Callable[[int], None]:
    def act(images: int) -> None:
        for _ in range(times if images == clock else 0):
            os.kill(os.getpid(), number)

    return act


def in_child(function: Callable[[], Any]) -> int:
    """Run ``function`` in a forked process; its exit status, negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trained(path: Path, run: Run) -> RunFolder:
    """``run``, trained without interruption in ``path``."""
    folder = create(path, run)
    assert train(run, folder).finished
    return folder


def interrupt(run: Run, folder: RunFolder, clock: int) -> None:
    """Train until the process ends before the step at ``clock``."""
    with pytest.raises(Crash), before_step(crash_at(clock)):
        train(run, folder)


def log_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The log without what depends on the clock on the wall."""
    return [{k: v for k, v in record.items() if k not in logs.TIMED} for record in logs.read(folder.log)]


def contents(folder: RunFolder) -> dict[str, Any]:
    """Everything that a run leaves behind and that must not depend on interruptions."""
    checkpoints = {file.name: load(file) for file in folder.checkpoints()}
    snapshots = {file.name: load(file) for _, _, file in folder.ema_snapshots()}
    files = {name: (c.sha256, c.meta) for name, c in (checkpoints | snapshots).items()}
    return {"files": files, "log": [repr(record) for record in log_of(folder)]}  # repr: NaN equals NaN


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load(folder.checkpoints()[-1]).part("network")


KINDS = ("flow", "global draws", "student")


def whole_runs(root: Path) -> dict[str, tuple[Run, dict[str, Any]]]:
    """kind -> (run, what the uninterrupted run leaves behind)."""
    dropout = MLP(width=16, depth=1, num_classes=3, dropout=0.3)
    teacher = trained(root / "flow", flow_run())
    runs = {
        "flow": flow_run(),
        "global draws": flow_run(network=dropout, objective=DrawsGlobally()),
        "student": facm_run(teacher.path, network=dropout),
    }
    folders = {kind: trained(root / kind, run) for kind, run in runs.items() if kind != "flow"} | {"flow": teacher}
    return {kind: (run, contents(folders[kind])) for kind, run in runs.items()}

"""A run: one frozen object that holds everything that changes the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch

from facm.core.component import Count, Images, Range, Seed, component
from facm.core.objective import as_objective
from facm.core.types import Data, NetworkConfig
from facm.runs.ema import PowerEMA
from facm.runs.optim import AdamW


@runtime_checkable
class Pretrained(Protocol):
    """A trained network to be loaded: a teacher, or where to start from. Its weights' hash goes into checkpoints."""

    def load(self) -> torch.nn.Module: ...


@runtime_checkable
class WithinStudent(Protocol):
    """A teacher that is the student itself in another state, as the base is of a network with adapters: no second copy
    of it is held."""

    def within(self, network: torch.nn.Module) -> Any:
        """The teacher F(x, t, cond), which the objective calls without gradients, inside ``network``."""
        ...


@runtime_checkable
class BesideStudent(Pretrained, Protocol):
    """A teacher that is in part the student itself in another state, and in part another network, which is loaded."""

    def beside(self, network: torch.nn.Module, loaded: Any) -> Any:
        """The teacher F(x, t, cond) of the student ``network`` and of what ``load`` gave, frozen and in its place."""
        ...


Interval = Annotated[int, Range("[1, 999999999999]")]
"""A number of images, at least 1; see :data:`facm.core.component.Images`."""


@dataclass(frozen=True)
@component
class Intervals:
    """How often a run writes, in images seen."""

    log: Interval = 2_000
    """Images between two records in log.jsonl, at least 1."""
    checkpoint: Interval = 100_000
    """Images between two checkpoints, at least 1; the last step is always saved."""
    ema_snapshots: Images = 100_000
    """Images between two snapshots of the EMA weights, for post-hoc synthesis of other lengths; 0 keeps none."""
    keep: Count = 2
    """Number of newest checkpoints that stay on disk, at least 1; older ones are deleted."""


@dataclass(frozen=True)
@component
class Run:
    """All that changes the numbers of a training run."""

    network: NetworkConfig
    """Configuration of the network that is trained."""
    data: Data
    """Data set that it is trained on."""
    objective: Any
    """Loss, with what the network is conditioned on."""
    images: Interval
    """Length of the run in images seen, at least 1."""
    batch_size: Count = 128
    """Images in one step, over all ranks and micro-batches."""
    optimizer: AdamW = AdamW()
    """Optimiser and learning-rate schedule."""
    ema: PowerEMA = PowerEMA()
    """Averages of the weights that the run tracks."""
    teacher: Pretrained | WithinStudent | None = None
    """Network that the objective distils from; None to learn from data alone."""
    initial: Pretrained | None = None
    """Network whose weights the run starts from, which must fit exactly; None for a random start."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the forward pass: bf16 is autocast; auto is bf16 on a GPU that supports it, otherwise fp32."""
    max_nonfinite: Count = 10
    """A step with a non-finite gradient is skipped and counted; this many in a row end the run."""
    every: Intervals = Intervals()
    """How often the run writes."""
    seed: Seed = 0
    """Seed of all random numbers of the run, 0 or more."""

    def __post_init__(self) -> None:
        as_objective(self.objective)


def teacher_of(run: Run, network: torch.nn.Module, device: torch.device | None = None) -> Any | None:
    """The teacher F(x, t, cond) of ``run`` on ``device``: loaded, or inside the student ``network``; or None."""
    if run.teacher is None or isinstance(run.teacher, WithinStudent):
        return asked_teacher(run, network, None)
    return asked_teacher(run, network, run.teacher.load().to(device).eval().requires_grad_(False))


def asked_teacher(run: Run, network: torch.nn.Module, loaded: Any | None) -> Any | None:
    """What the objective asks: F(x, t, cond). loaded: what the teacher's ``load`` gave, frozen, where it has one."""
    if isinstance(run.teacher, WithinStudent):
        return run.teacher.within(network)
    if isinstance(run.teacher, BesideStudent):
        return run.teacher.beside(network, loaded)
    return loaded

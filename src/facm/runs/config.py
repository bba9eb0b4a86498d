"""A run: one frozen object that holds everything that changes the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from facm.core.objective import as_objective
from facm.core.types import Data, NetworkConfig
from facm.runs.ema import PowerEMA
from facm.runs.optim import AdamW


@runtime_checkable
class Pretrained(Protocol):
    """A trained network to be loaded: a teacher, or where to start from. Its weights' hash goes into checkpoints."""

    def load(self) -> torch.nn.Module: ...


@dataclass(frozen=True)
class Intervals:
    """How often a run writes, in images seen. Raises ValueError for a number below its least."""

    log: int = 2_000
    """Images between two records in log.jsonl, at least 1."""
    checkpoint: int = 100_000
    """Images between two checkpoints, at least 1; the last step is always saved."""
    ema_snapshots: int = 100_000
    """Images between two snapshots of the EMA weights, for post-hoc synthesis of other lengths; 0 keeps none."""
    keep: int = 2
    """Number of newest checkpoints that stay on disk, at least 1; older ones are deleted."""

    def __post_init__(self) -> None:
        for name, least in (("log", 1), ("checkpoint", 1), ("ema_snapshots", 0), ("keep", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"every.{name} = {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True)
class Run:
    """All that changes the numbers of a training run. Raises ValueError for a number out of its range, TypeError for a
    component that does not fulfil its protocol."""

    network: NetworkConfig
    """Configuration of the network that is trained."""
    data: Data
    """Data set that it is trained on."""
    objective: Any
    """Loss, with what the network is conditioned on."""
    images: int
    """Length of the run in images seen, at least 1."""
    batch_size: int = 128
    """Images in one step, over all ranks and micro-batches."""
    optimizer: AdamW = AdamW()
    """Optimiser and learning-rate schedule."""
    ema: PowerEMA = PowerEMA()
    """Averages of the weights that the run tracks."""
    teacher: Pretrained | None = None
    """Network that the objective distils from; None to learn from data alone."""
    initial: Pretrained | None = None
    """Network whose weights the run starts from, which must fit exactly; None for a random start."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the forward pass: bf16 is autocast; auto is bf16 on a GPU that supports it, otherwise fp32."""
    max_nonfinite: int = 10
    """A step with a non-finite gradient is skipped and counted; this many in a row end the run."""
    every: Intervals = Intervals()
    """How often the run writes."""
    seed: int = 0
    """Seed of all random numbers of the run, 0 or more."""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images = {self.images}: zero steps train nothing; expected at least 1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}, expected at least 1")
        if self.max_nonfinite < 1:
            raise ValueError(f"max_nonfinite = {self.max_nonfinite}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}, expected 0 or more")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision = {self.precision!r}, expected 'auto', 'fp32' or 'bf16'")
        as_objective(self.objective)
        for name, protocol in (("network", NetworkConfig), ("data", Data)):
            if not isinstance(getattr(self, name), protocol):
                raise TypeError(f"{name} = {getattr(self, name)!r} is not a {protocol.__name__}: {protocol.__doc__}")
        for name in ("teacher", "initial"):
            if not isinstance(getattr(self, name), Pretrained | None):
                raise TypeError(f"{name} = {getattr(self, name)!r}, expected FromRun(folder), or an object with load()")

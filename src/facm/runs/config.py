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
    """How often things are written, in images seen.

    keep: how many of the newest checkpoints stay. ema_snapshots: EMA weights kept for post-hoc synthesis; 0 is none.
    """

    log: int = 2_000
    checkpoint: int = 100_000
    ema_snapshots: int = 100_000
    keep: int = 2

    def __post_init__(self) -> None:
        for name, least in (("log", 1), ("checkpoint", 1), ("ema_snapshots", 0), ("keep", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"every.{name} = {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True)
class Run:
    """All that changes the numbers of a training run.

    network, data, objective: frozen components, the package's or your own.
    images: length of the run in images seen; batch_size: images a step.
    teacher: what the objective distils from; initial: weights to start from (strict), or None for a random start.
    precision: "fp32", "bf16" (autocast), or "auto": bf16 where the device has it, which a CPU has not.
    max_nonfinite: a step with a non-finite gradient is skipped and counted; so many in a row stop the run.
    seed: of everything random in the run.
    """

    network: NetworkConfig
    data: Data
    objective: Any
    images: int
    batch_size: int = 128
    optimizer: AdamW = AdamW()
    ema: PowerEMA = PowerEMA()
    teacher: Pretrained | None = None
    initial: Pretrained | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    max_nonfinite: int = 10
    every: Intervals = Intervals()
    seed: int = 0

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

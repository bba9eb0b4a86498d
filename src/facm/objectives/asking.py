"""An objective whose targets come from an average of the network's weights, bound to that average for a step."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import torch

from facm.core.component import Range
from facm.core.objective import Condition, Objective, Task, VelocityTarget
from facm.core.types import Batch, Loss

Momentum = Annotated[float, Range("[0, 1)")]
"""What an exponential average keeps of itself in each step."""


class Asks(Protocol):
    """An objective that may be given an average."""

    condition: Condition
    velocity: VelocityTarget
    task: Task
    draws_for_whole_step: bool

    def __call__(
        self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None, average: Any | None = None
    ) -> Loss: ...


class Asking(Objective):
    """``objective`` with ``average`` for its targets; all else is the objective's."""

    def __init__(self, objective: Any, average: Any) -> None:
        self.objective: Asks = objective
        self.average = average
        self.condition, self.velocity, self.task = objective.condition, objective.velocity, objective.task
        self.draws_for_whole_step = objective.draws_for_whole_step

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        return self.objective(network, batch, rng, teacher, self.average)


class AsksAverage(Objective):
    """An objective some targets of which come from an average of the network, with ``momentum``; 0: from itself."""

    condition: Condition
    momentum: float

    @property
    def average_momentum(self) -> float | None:  # type: ignore[override]
        return self.momentum or None

    def asking(self, average: Any) -> Objective:
        return Asking(self, average)

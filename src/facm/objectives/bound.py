"""An objective with further arguments of its call, bound for a step: how much is warmed up, or an average to ask."""

from __future__ import annotations

from typing import Any

import torch

from facm.core.objective import Objective
from facm.core.types import Batch, Loss


class Bound(Objective):
    """``objective``, whose call is given ``further``; all else is the objective's."""

    def __init__(self, objective: Any, **further: Any) -> None:
        self.objective, self.further = objective, further
        self.condition, self.velocity, self.task = objective.condition, objective.velocity, objective.task
        self.derivative = objective.derivative
        self.draws_for_whole_step = objective.draws_for_whole_step

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        loss: Loss = self.objective(network, batch, rng, teacher, **self.further)
        return loss

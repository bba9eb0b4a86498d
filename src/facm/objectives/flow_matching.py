"""Flow matching (Eq. 1), with the mixed conditioning that prepares a teacher for distillation (App. A.3 a)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.tensors import at_least_float32
from facm.core.types import Batch, Loss
from facm.flow.conditions import Condition, check_label_dropout
from facm.flow.distances import Distance, L2Cosine
from facm.flow.interpolant import chosen, noise, rows, size
from facm.flow.paths import interpolate, velocity
from facm.flow.time_conditioning import ExpandedInterval, Task, check_task
from facm.flow.times import TimeDistribution, Uniform


@dataclass(frozen=True)
class FlowMatchingTerms:
    """x_t, v and the prediction F (B, ...), and the per-sample loss L_FM (B,)."""

    x_t: Tensor
    v: Tensor
    F: Tensor
    L_FM: Tensor

    def loss(self) -> Loss:
        return Loss(self.L_FM.mean(), {"flow": self.L_FM.detach()})


@dataclass(frozen=True)
class FlowMatching:
    """L = E d(F(x_t, c), x_1 - x_0).

    mixed: fraction of samples conditioned on c_FM, the others on c_CM (which is the plain t for the expanded interval):
        with 0.5 the teacher already answers at c_FM when distillation starts, with 0 it is an ordinary one.
    label_dropout: fraction trained at the null condition, without which the teacher cannot be guided.
    """

    condition: Condition
    task: Task = ExpandedInterval()
    time: TimeDistribution = Uniform()
    distance: Distance = L2Cosine()
    mixed: float = 0.5
    label_dropout: float = 0.1
    global_draws = True

    def __post_init__(self) -> None:
        for name in ("mixed", "label_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected a fraction in [0, 1]")
        check_label_dropout(self.condition, self.label_dropout)

    def evaluate(
        self,
        network: Any,
        x_1: Tensor,
        x_0: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        anchored: Tensor | None = None,
    ) -> FlowMatchingTerms:
        """One evaluation on given draws: x_1, x_0 (B, ...), t (B,), cond (B,), anchored (B,) bool: which samples are
        conditioned on c_FM (none if not given). Raises ValueError on wrong shapes, times or labels."""
        check_task(self.task, network)
        self.condition.check(cond, len(x_1))
        x_t, v = interpolate(x_0, x_1, t), velocity(x_0, x_1)
        c = self.task.shortcut(t)
        if anchored is not None:
            c = {name: torch.where(anchored, c_FM, c[name]) for name, c_FM in self.task.anchor(t).items()}
        F = at_least_float32(network(x_t, cond=cond, **c))
        return FlowMatchingTerms(x_t, v, F, self.distance(F, v))

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        x_0 = noise(batch, rng)
        t = rows(self.time.sample(size(batch), rng), batch).to(x_0.dtype)
        anchored = chosen(batch, self.mixed, rng)
        cond = batch.cond
        if self.label_dropout:
            cond = self.condition.drop(cond, chosen(batch, self.label_dropout, rng))
        return self.evaluate(network, batch.x_1, x_0, t, cond, anchored).loss()

"""Flow matching (Eq. 1), with the mixed conditioning that prepares a teacher for distillation (App. A.3 a)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.component import Fraction, component
from facm.core.objective import Condition, Objective, Task
from facm.core.tensors import at_least_float32
from facm.core.types import Batch, Loss
from facm.flow.conditions import check_label_dropout
from facm.flow.distances import Distance, L2Cosine
from facm.flow.interpolant import Interpolant, draw_noise, draw_subset, rows, step_size
from facm.flow.phases import Phases
from facm.flow.time_conditioning import ExpandedInterval
from facm.flow.times import TimeDistribution, Uniform
from facm.objectives.consistency_target import checked_network


@dataclass(frozen=True)
class FlowMatchingTerms:
    """Every intermediate of one evaluation.

    x_t, v: (B, ...).
    F: (B, ...), the prediction.
    L_FM: (B,), the loss of each sample.
    """

    x_t: Tensor
    v: Tensor
    F: Tensor
    L_FM: Tensor

    def loss(self) -> Loss:
        return Loss(self.L_FM.mean(), {"flow": self.L_FM.detach()})


@dataclass(frozen=True)
@component
class FlowMatching(Objective):
    """L = E d(F(x_t, c), x_1 - x_0)."""

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    task: Task = ExpandedInterval()
    """How the network tells the two tasks of distillation apart: ExpandedInterval() or AuxiliaryTime() (Sec. 3.2.2)."""
    time: TimeDistribution = Uniform()
    """Distribution of the training time t."""
    distance: Distance = L2Cosine()
    """Distance d of prediction and velocity."""
    p_flow_condition: Fraction = 0.5
    """Fraction of samples conditioned on c_FM, the others on c_CM; 0.5 prepares a teacher for distillation."""
    label_dropout: Fraction = 0.1
    """Fraction of samples trained at the null condition, without which the teacher cannot be guided."""
    phases: Phases = Phases()
    """Bounds of the times that it learns, from the first to the last; (0, 1): all of them."""
    draws_for_whole_step = True

    @property
    def bounds(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.phases.bounds

    def __post_init__(self) -> None:
        check_label_dropout(self)

    def evaluate(self, network: Any, point: Interpolant, anchored: Tensor | None = None) -> FlowMatchingTerms:
        """One evaluation at given draws; anchored (B,) bool: the samples that are conditioned on c_FM, None for none.

        Raises ValueError for labels that do not fit.
        """
        network_time = self.task.shortcut(point.t)
        checked_network(self, network, point)
        if anchored is not None:
            c_FM = self.task.anchor(point.t)
            network_time = {name: torch.where(anchored, c_FM[name], c) for name, c in network_time.items()}
        F = at_least_float32(network(point.x_t, cond=point.cond, **network_time))
        return FlowMatchingTerms(point.x_t, point.v, F, self.distance(F, point.v))

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        x_0 = draw_noise(batch, rng)
        t = rows(self.phases.times(self.time).sample(step_size(batch), rng), batch).to(x_0.dtype)
        anchored = draw_subset(batch, self.p_flow_condition, rng)
        point = Interpolant.at(x_0, batch, t, self.condition, self.label_dropout, rng)
        return self.evaluate(network, point, anchored).loss().at(t)

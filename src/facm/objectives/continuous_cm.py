"""Plain continuous-time consistency: FACM without its anchor, the paper's central ablation (Eq. 6, Sec. 3.1.2).

With ``alpha = One()`` and ``clamp = None`` the target is the bare v + (1 - t) dF/dt; it is what may collapse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.types import Batch, Loss
from facm.derivative import Derivative, OpLevel, Prediction, same_dropout
from facm.flow.conditions import Condition
from facm.flow.distances import Distance, NormL2
from facm.flow.interpolant import Point, draw
from facm.flow.paths import interpolate
from facm.flow.time_conditioning import ExpandedInterval, Task, check_task
from facm.flow.times import ArctanLogNormal, TimeDistribution
from facm.flow.velocity import TeacherVelocity, VelocityTarget, check_guidance
from facm.flow.weighting import Cosine, OneMinusPower, Weight
from facm.objectives.consistency_target import check_clamp, shortcut_target


@dataclass(frozen=True)
class ConsistencyTerms:
    """As FACMTerms, without the anchor's."""

    x_t: Tensor
    v: Tensor
    F_CM: Tensor
    dF: Tensor
    v_bar: Tensor
    g: Tensor
    v_tar: Tensor
    L_norm: Tensor
    L_CM: Tensor

    def loss(self) -> Loss:
        terms = {"shortcut": self.L_CM.detach(), "tangent_rms": self.dF.square().flatten(1).mean(1).sqrt()}
        return Loss(self.L_CM.mean(), terms)


@dataclass(frozen=True)
class ContinuousCM:
    """The shortcut loss alone; fields as in :class:`facm.objectives.facm.FACM`."""

    condition: Condition
    velocity: VelocityTarget = TeacherVelocity()
    task: Task = ExpandedInterval()
    time: TimeDistribution = ArctanLogNormal(-0.8, 1.6)
    shortcut: Distance = NormL2()
    alpha: Weight = OneMinusPower(0.5)
    beta: Weight = Cosine()
    clamp: float | None = 1.0
    label_dropout: float = 0.0
    derivative: Derivative = OpLevel()
    learns_shortcut = True
    learns_flow = False
    global_draws = True

    def __post_init__(self) -> None:
        check_clamp(self.clamp)
        check_guidance(self.condition, self.velocity, self.label_dropout)

    def evaluate(
        self,
        network: Any,
        x_1: Tensor,
        x_0: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        teacher: Any | None = None,
        dropped: Tensor | None = None,
    ) -> ConsistencyTerms:
        """One evaluation on given draws; arguments and errors as in FACM.evaluate."""
        check_task(self.task, network)
        self.condition.check(cond, len(x_1))
        network = same_dropout(network)
        x_t = interpolate(x_0, x_1, t)
        v = self.velocity(network, teacher, Point(x_1, x_0, x_t, t, cond, dropped), self.condition, self.task)
        F = Prediction(network, self.task.shortcut, cond)
        F_CM, dF = self.derivative(F, (x_t, t), (v, torch.ones_like(t)))
        target = shortcut_target(F_CM, dF, v, t, self.alpha(t), self.clamp)
        L_norm = self.shortcut(F_CM, target.v_tar)
        return ConsistencyTerms(x_t, v, F_CM, dF, target.v_bar, target.g, target.v_tar, L_norm, self.beta(t) * L_norm)

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        d = draw(batch, self.time, self.condition, self.label_dropout, rng)
        return self.evaluate(network, batch.x_1, d.x_0, d.t, d.cond, teacher, d.dropped).loss()

"""Discrete-time consistency, distilled or trained: f(x_t, t) meets its own frozen answer one step closer to data.

    L = w(t, s) d(f(x_t, t), sg f(x_s, s)),   t < s,   x_s = x_t + (s - t) v,   f = x_t + (1 - t) F

v is the teacher's velocity (distillation, arXiv 2303.01469, here with an Euler step) or x_1 - x_0 (training: iCT, ECT).
f is the identity at t = 1 by construction. Left out: Heun's step of the teacher, and an EMA of the network as target
(neither iCT nor ECT has one).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from facm.core.tensors import check_time, expand
from facm.core.types import Batch, Loss
from facm.derivative import Prediction, same_dropout
from facm.flow.conditions import Condition
from facm.flow.distances import Distance, PseudoHuber
from facm.flow.interpolant import Point, chosen, noise, rows, size
from facm.flow.paths import interpolate, x_1_from_velocity
from facm.flow.time_conditioning import ExpandedInterval, Task, check_task
from facm.flow.velocity import TeacherVelocity, VelocityTarget, check_guidance
from facm.objectives.discrete_schedules import OverStep, PairSchedule, PairWeight


@dataclass(frozen=True)
class DiscreteTerms:
    """x_t, v, x_s, the prediction f_t and its target f_s (B, ...); the weighted loss L_CM (B,)."""

    x_t: Tensor
    v: Tensor
    x_s: Tensor
    f_t: Tensor
    f_s: Tensor
    L_CM: Tensor

    def loss(self) -> Loss:
        return Loss(self.L_CM.mean(), {"consistency": self.L_CM.detach()})


@dataclass(frozen=True)
class DiscreteCM:
    """iCT: DiscreteCM(condition, DoublingSteps(images), DataVelocity()); ECT: DiscreteCM(condition, ShrinkingGap(),
    DataVelocity(), weight=SignalToNoise()); distillation: velocity = TeacherVelocity().

    condition, velocity, task, label_dropout: as in :class:`facm.objectives.facm.FACM`. schedule: the pairs of times;
    weight: w(t, s).
    """

    condition: Condition
    schedule: PairSchedule
    velocity: VelocityTarget = TeacherVelocity()
    task: Task = ExpandedInterval()
    distance: Distance = PseudoHuber()
    weight: PairWeight = OverStep()
    label_dropout: float = 0.0
    learns_shortcut = True
    learns_flow = False
    global_draws = True

    def __post_init__(self) -> None:
        check_guidance(self.condition, self.velocity, self.label_dropout)

    def at(self, images_seen: int) -> DiscreteCM:
        """This objective at the training clock ``images_seen``: the schedule moves on."""
        return replace(self, schedule=self.schedule.at(images_seen))

    def check_nfe(self, nfe: int) -> None:
        """Raise ValueError for a sampler with more steps than the schedule ends with."""
        most = self.schedule.most_steps
        if most is not None and nfe > most:
            raise ValueError(f"nfe = {nfe}, and {self.schedule} ends with {most} steps: expected at most {most}")

    def evaluate(
        self,
        network: Any,
        x_1: Tensor,
        x_0: Tensor,
        t: Tensor,
        s: Tensor,
        cond: Tensor | None = None,
        teacher: Any | None = None,
        dropped: Tensor | None = None,
    ) -> DiscreteTerms:
        """One evaluation on given draws: x_1, x_0 (B, ...), 0 < t < s <= 1 (B,), cond (B,), dropped (B,) bool.

        Raises ValueError on wrong shapes, times or labels, a missing teacher, or a network without the second time
        that the task needs.
        """
        check_task(self.task, network)
        self.condition.check(cond, len(x_1))
        check_time(s, x_1, "s")
        x_t = interpolate(x_0, x_1, t)
        if s.device.type == "cpu" and not bool((t < s).all()):
            raise ValueError("expected t < s: s is the time closer to data")
        network = same_dropout(network)
        v = self.velocity(network, teacher, Point(x_1, x_0, x_t, t, cond, dropped), self.condition, self.task)
        x_s = x_t + expand(s - t, x_t) * v
        F = Prediction(network, self.task.shortcut, cond)
        with torch.no_grad():
            f_s = x_1_from_velocity(x_s, F(x_s, s), s)
        f_t = x_1_from_velocity(x_t, F(x_t, t), t)
        return DiscreteTerms(x_t, v, x_s, f_t, f_s, self.weight(t, s) * self.distance(f_t, f_s))

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        x_0 = noise(batch, rng)
        t, s = (rows(time, batch).to(x_0.dtype) for time in self.schedule.sample(size(batch), rng))
        s = torch.maximum(s, torch.nextafter(t, torch.ones_like(t)))  # a late gap may be below the precision
        cond, dropped = batch.cond, None
        if self.label_dropout:
            dropped = chosen(batch, self.label_dropout, rng)
            cond = self.condition.drop(cond, dropped)
        return self.evaluate(network, batch.x_1, x_0, t, s, cond, teacher, dropped).loss()

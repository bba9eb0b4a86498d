"""Discrete-time consistency, distilled or trained: f(x_t, t) meets its own frozen answer one step closer to data.

    L = w(t, s) d(f(x_t, t), sg f(x_s, s)),   t < s,   x_s = x_t + (s - t) v,   f = x_t + (1 - t) F

v is the teacher's velocity (distillation, arXiv 2303.01469, here with an Euler step) or x_1 - x_0 (training: iCT, ECT).
f is the identity at t = 1 by construction. With a momentum the frozen answer is an average network's, as in
distillation (Alg. 2); iCT and ECT have none. Left out: Heun's step of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from facm.core.component import component
from facm.core.objective import Condition, Task, VelocityTarget
from facm.core.tensors import check_time, expand
from facm.core.types import Batch, Loss
from facm.derivative import Prediction
from facm.flow.conditions import Dropout
from facm.flow.distances import Distance, PseudoHuber
from facm.flow.interpolant import Interpolant, draw_noise, rows, step_size
from facm.flow.paths import x_1_from_velocity
from facm.flow.time_conditioning import ExpandedInterval
from facm.flow.velocity import TeacherVelocity, check_guidance
from facm.objectives.asking import AsksAverage, Momentum
from facm.objectives.consistency_target import checked_network
from facm.objectives.discrete_schedules import OverStep, PairSchedule, PairWeight, apart


@dataclass(frozen=True)
class DiscreteTerms:
    """Every intermediate of one evaluation.

    x_t, v, x_s: (B, ...).
    f_t: (B, ...), the prediction.
    f_s: (B, ...), its target.
    L_CM: (B,), the weighted loss of each sample.
    """

    x_t: Tensor
    v: Tensor
    x_s: Tensor
    f_t: Tensor
    f_s: Tensor
    L_CM: Tensor

    def loss(self) -> Loss:
        return Loss(self.L_CM.mean(), {"consistency": self.L_CM.detach()})


@dataclass(frozen=True)
@component
class DiscreteCM(AsksAverage):
    """Discrete-time consistency.

    iCT: DiscreteCM(condition, DoublingSteps(images), DataVelocity()); ECT: DiscreteCM(condition, ShrinkingGap(),
    DataVelocity(), weight=SignalToNoise()); distillation: velocity = TeacherVelocity().
    """

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    schedule: PairSchedule
    """Which pairs of times are compared: DoublingSteps(images) or ShrinkingGap()."""
    velocity: VelocityTarget = TeacherVelocity()
    """Where the velocity v comes from: TeacherVelocity() for distillation, DataVelocity() for training."""
    task: Task = ExpandedInterval()
    """How the network is told which velocity to predict: ExpandedInterval() or AuxiliaryTime() (Sec. 3.2.2)."""
    distance: Distance = PseudoHuber()
    """Distance d of the two answers."""
    weight: PairWeight = OverStep()
    """Weight w(t, s) of a pair."""
    label_dropout: Dropout = 0.0
    """Fraction of samples trained at the null condition."""
    momentum: Momentum = 0.0
    """Momentum of the average of the network that answers at s, 0.95 in CD on CIFAR-10; 0: the network itself."""
    learns_shortcut = True
    learns_flow = False
    draws_for_whole_step = True

    def __post_init__(self) -> None:
        check_guidance(self, self.velocity)

    def at(self, images_seen: int) -> DiscreteCM:
        """This objective at the training clock ``images_seen``: the schedule moves on."""
        return replace(self, schedule=self.schedule.at(images_seen))

    def check_nfe(self, nfe: int) -> None:
        """Raise ValueError for a sampler with more steps than the schedule ends with."""
        most = self.schedule.most_steps
        if most is not None and nfe > most:
            raise ValueError(f"nfe = {nfe}, and {self.schedule} ends with {most} steps: expected at most {most}")

    def evaluate(
        self, network: Any, point: Interpolant, s: Tensor, teacher: Any | None = None, average: Any | None = None
    ) -> DiscreteTerms:
        """One evaluation at given draws; s (B,), t < s <= 1, is the time closer to data.

        average: what answers at s; None: the network itself, frozen.

        Raises ValueError for times or labels that do not fit, a missing teacher, or a network without the second time
        that the task needs.
        """
        x_t, t = point.x_t, point.t
        check_time(s, point.x_1, "s")
        if s.device.type == "cpu" and not bool((t < s).all()):
            raise ValueError("expected t < s: s is the time closer to data")
        network = checked_network(self, network, point)
        v = self.velocity(network, teacher, point, self.condition, self.task)
        x_s = x_t + expand(s - t, x_t) * v
        F = Prediction(network, self.task.shortcut, point.cond)
        with torch.no_grad():
            F_s = F if average is None else Prediction(average, self.task.shortcut, point.cond)
            f_s = x_1_from_velocity(x_s, F_s(x_s, s), s)
        f_t = x_1_from_velocity(x_t, F(x_t, t), t)
        return DiscreteTerms(x_t, v, x_s, f_t, f_s, self.weight(t, s) * self.distance(f_t, f_s))

    def __call__(
        self,
        network: Any,
        batch: Batch,
        rng: torch.Generator,
        teacher: Any | None = None,
        average: Any | None = None,
    ) -> Loss:
        x_0 = draw_noise(batch, rng)
        t, s = apart(*(rows(time, batch).to(x_0.dtype) for time in self.schedule.sample(step_size(batch), rng)))
        point = Interpolant.at(x_0, batch, t, self.condition, self.label_dropout, rng)
        return self.evaluate(network, point, s, teacher, average).loss()

"""Plain continuous-time consistency: FACM without its anchor, the paper's central ablation (Eq. 6, Sec. 3.1.2).

With ``alpha = One()`` and ``clamp = None`` the target is the bare v + (1 - t) dF/dt, which may collapse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.component import Positive, component
from facm.core.objective import Condition, Objective, Task, VelocityTarget
from facm.core.types import Batch, Loss
from facm.derivative import Derivative, OpLevel
from facm.flow.conditions import Dropout
from facm.flow.distances import Distance, NormL2
from facm.flow.interpolant import Interpolant
from facm.flow.phases import Phases
from facm.flow.time_conditioning import ExpandedInterval
from facm.flow.times import ArctanLogNormal, TimeDistribution
from facm.flow.velocity import TeacherVelocity, check_guidance
from facm.flow.weighting import Cosine, OneMinusPower, Weight
from facm.objectives.consistency_target import checked_network
from facm.objectives.facm import ShortcutTerms, shortcut_terms


@dataclass(frozen=True)
class ConsistencyTerms(ShortcutTerms):
    """As FACM's shortcut.

    x_t, v: (B, ...).
    """

    x_t: Tensor
    v: Tensor

    def loss(self) -> Loss:
        terms = {name: value for name, value in ShortcutTerms.loss(self).terms.items() if name != "clamped"}
        return Loss(self.L_CM.mean(), terms)


@dataclass(frozen=True)
@component
class ContinuousCM(Objective):
    """The shortcut's loss alone."""

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    velocity: VelocityTarget = TeacherVelocity()
    """Where the velocity v comes from: TeacherVelocity() for distillation, DataVelocity() from scratch."""
    task: Task = ExpandedInterval()
    """How the network is told which velocity to predict: ExpandedInterval() or AuxiliaryTime() (Sec. 3.2.2)."""
    time: TimeDistribution = ArctanLogNormal(-0.8, 1.6)
    """Distribution of the training time t (Eq. 20, Table 5)."""
    shortcut: Distance = NormL2()
    """Distance d_2 of the loss (Eq. 18)."""
    alpha: Weight = OneMinusPower(0.5)
    """Step alpha(t) from the prediction towards its target (Eq. 12, Table 4)."""
    beta: Weight = Cosine()
    """Weight beta(t) of the loss (Eq. 14, Table 4)."""
    clamp: Positive | None = 1.0
    """Bound of each element of the residual g; None for no bound."""
    label_dropout: Dropout = 0.0
    """Fraction of samples trained at the null condition."""
    derivative: Derivative = OpLevel()
    """How the total derivative dF/dt is computed (Eq. 16)."""
    phases: Phases = Phases()
    """Which times are trained, and where the student jumps from each: Phases() is to data from all of them."""
    learns_shortcut = True
    learns_flow = False
    draws_for_whole_step = True

    def __post_init__(self) -> None:
        check_guidance(self, self.velocity)

    @property
    def bounds(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.phases.bounds

    def evaluate(self, network: Any, point: Interpolant, teacher: Any | None = None) -> ConsistencyTerms:
        """One evaluation at given draws; errors as in :meth:`facm.objectives.facm.FACM.evaluate`."""
        network = checked_network(self, network, point)
        v = self.velocity(network, teacher, point, self.condition, self.task)
        return ConsistencyTerms(**vars(shortcut_terms(self, network, point, v)), x_t=point.x_t, v=v)

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        point = Interpolant.draw(batch, self.phases.times(self.time), self.condition, self.label_dropout, rng)
        return self.evaluate(network, point, teacher).loss()

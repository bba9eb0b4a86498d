"""Flow-Anchored Consistency: Algorithm 1 of the paper (arXiv 2507.03738), beside its line numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from facm.core.component import Positive, component
from facm.core.objective import Condition, Objective, Task, VelocityTarget
from facm.core.types import Batch, Loss
from facm.derivative import Derivative, OpLevel, Prediction
from facm.flow.conditions import Dropout
from facm.flow.distances import Distance, L2Cosine, NormL2
from facm.flow.interpolant import Interpolant
from facm.flow.phases import Phases
from facm.flow.time_conditioning import ExpandedInterval
from facm.flow.times import ArctanLogNormal, TimeDistribution
from facm.flow.velocity import TeacherVelocity, check_guidance
from facm.flow.weighting import Cosine, OneMinusPower, Weight
from facm.objectives.consistency_target import checked_network, shortcut_target

if TYPE_CHECKING:
    from facm.objectives.continuous_cm import ContinuousCM


@dataclass(frozen=True)
class AnchorTerms:
    """The anchor's half of Algorithm 1.

    x_t, v, F_FM: (B, ...).
    L_FM: (B,), the loss of each sample.
    """

    x_t: Tensor
    v: Tensor
    F_FM: Tensor
    L_FM: Tensor

    def loss(self) -> Loss:
        return Loss(self.L_FM.mean(), {"anchor": self.L_FM.detach()})


@dataclass(frozen=True)
class ShortcutTerms:
    """The shortcut's half of Algorithm 1.

    F_CM, dF, v_bar, v_tar: (B, ...).
    g: (B, ...), the residual before the clamp.
    L_norm: (B,), the loss of each sample before its weight.
    L_CM: (B,), beta(t) L_norm.
    """

    F_CM: Tensor
    dF: Tensor
    v_bar: Tensor
    g: Tensor
    v_tar: Tensor
    L_norm: Tensor
    L_CM: Tensor

    def loss(self) -> Loss:
        terms = {
            "shortcut": self.L_CM.detach(),
            "tangent_rms": self.dF.square().flatten(1).mean(1).sqrt(),
            "clamped": (self.g.abs() > 1).flatten(1).float().mean(1),
        }
        return Loss(self.L_CM.mean(), terms)


@dataclass(frozen=True)
class FACMTerms(AnchorTerms, ShortcutTerms):
    """Every intermediate of one evaluation, in the paper's symbols."""

    def loss(self) -> Loss:
        """L = L_FM + L_CM, averaged over the batch (Eq. 8)."""
        return Loss((self.L_FM + self.L_CM).mean(), {**AnchorTerms.loss(self).terms, **ShortcutTerms.loss(self).terms})


@dataclass(frozen=True)
@component
class FACM(Objective):
    """The FACM objective (Algorithm 1, Eq. 8-14)."""

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    velocity: VelocityTarget = TeacherVelocity()
    """Where the velocity v comes from: TeacherVelocity() for distillation, DataVelocity() from scratch."""
    task: Task = ExpandedInterval()
    """How the network tells the two tasks apart: ExpandedInterval() or AuxiliaryTime() (Sec. 3.2.2)."""
    time: TimeDistribution = ArctanLogNormal(-0.8, 1.6)
    """Distribution of the training time t (Eq. 20, Table 5)."""
    anchor: Distance = L2Cosine()
    """Distance d_1 of the anchor's loss (Eq. 10)."""
    shortcut: Distance = NormL2()
    """Distance d_2 of the shortcut's loss (Eq. 18)."""
    alpha: Weight = OneMinusPower(0.5)
    """Step alpha(t) from the prediction towards its target (Eq. 12, Table 4)."""
    beta: Weight = Cosine()
    """Weight beta(t) of the shortcut's loss (Eq. 14, Table 4)."""
    clamp: Positive | None = 1.0
    """Bound of each element of the residual g; None for no bound."""
    label_dropout: Dropout = 0.0
    """Fraction of samples trained at the null condition: 0.1 from scratch with guidance, 0 in distillation."""
    derivative: Derivative = OpLevel()
    """How the total derivative dF/dt is computed (Eq. 16)."""
    phases: Phases = Phases()
    """Which times are trained, and where the student jumps from each: Phases() is to data from all of them."""
    learns_shortcut = True
    draws_for_whole_step = True

    def __post_init__(self) -> None:
        check_guidance(self, self.velocity)

    @property
    def bounds(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.phases.bounds

    def evaluate(self, network: Any, point: Interpolant, teacher: Any | None = None) -> FACMTerms:
        """One evaluation at given draws.

        Raises ValueError for labels that do not fit, a missing teacher, or a network without the second time that the
        task needs.
        """
        anchor, shortcut = self._terms(network, point, teacher)
        return FACMTerms(**vars(anchor()), **vars(shortcut()))

    def _terms(
        self, network: Any, point: Interpolant, teacher: Any | None
    ) -> tuple[Callable[[], AnchorTerms], Callable[[], ShortcutTerms]]:
        network = checked_network(self, network, point)
        x_t, t = point.x_t, point.t  # line 3
        v = self.velocity(network, teacher, point, self.condition, self.task)  # line 4

        def anchor() -> AnchorTerms:
            F_FM = Prediction(network, self.task.anchor, point.cond)(x_t, t)  # line 5
            return AnchorTerms(x_t, v, F_FM, self.anchor(F_FM, v))  # Eq. 10

        return anchor, lambda: shortcut_terms(self, network, point, v)  # lines 6-8

    def _drawn(self, batch: Batch, rng: torch.Generator) -> Interpolant:
        return Interpolant.draw(batch, self.phases.times(self.time), self.condition, self.label_dropout, rng)

    def loss_terms(
        self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None
    ) -> tuple[Callable[[], Loss], ...]:
        """The anchor's loss and the shortcut's, on the same draws."""
        point = self._drawn(batch, rng)  # lines 1-2
        anchor, shortcut = self._terms(network, point, teacher)
        return lambda: anchor().loss().at(point.t), lambda: shortcut().loss().at(point.t)

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        """L_FM + L_CM on noise, times and dropped labels from ``rng``."""
        point = self._drawn(batch, rng)  # lines 1-2
        return self.evaluate(network, point, teacher).loss().at(point.t)  # line 9


def shortcut_terms(objective: FACM | ContinuousCM, network: Any, point: Interpolant, v: Tensor) -> ShortcutTerms:
    """Algorithm 1, lines 6-8: the shortcut's loss at ``point``, where the velocity is v (B, ...)."""
    x_t, t = point.x_t, point.t
    F = Prediction(network, objective.task.shortcut, point.cond)
    F_CM, dF = objective.derivative(F, (x_t, t), (v, torch.ones_like(t)))  # line 6, Eq. 16
    t_end = objective.phases.end(t)  # 1 in the paper, whose student has one phase
    s = objective.phases.progress(t)
    target = shortcut_target(F_CM, dF, v, t_end - t, objective.alpha(s), objective.clamp)  # lines 7-8, Eq. 11-13
    L_norm = objective.shortcut(F_CM, target.v_tar)  # Eq. 18
    L_CM = objective.beta(s) * L_norm  # Eq. 14
    return ShortcutTerms(F_CM, dF, target.v_bar, target.g, target.v_tar, L_norm, L_CM)

"""Flow-Anchored Consistency: Algorithm 1 of the paper (arXiv 2507.03738), beside its line numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.types import Batch, Loss
from facm.derivative import Derivative, OpLevel, Prediction, same_dropout
from facm.flow.conditions import Condition
from facm.flow.distances import Distance, L2Cosine, NormL2
from facm.flow.interpolant import Point, draw
from facm.flow.paths import interpolate
from facm.flow.time_conditioning import ExpandedInterval, Task, check_task
from facm.flow.times import ArctanLogNormal, TimeDistribution
from facm.flow.velocity import TeacherVelocity, VelocityTarget, check_guidance
from facm.flow.weighting import Cosine, OneMinusPower, Weight
from facm.objectives.consistency_target import check_clamp, shortcut_target


@dataclass(frozen=True)
class AnchorTerms:
    """The anchor's half of an evaluation: tensors (B, ...) and the per-sample loss L_FM (B,)."""

    x_t: Tensor
    v: Tensor
    F_FM: Tensor
    L_FM: Tensor

    def loss(self) -> Loss:
        return Loss(self.L_FM.mean(), {"anchor": self.L_FM.detach()})


@dataclass(frozen=True)
class ShortcutTerms:
    """The shortcut's half. L_CM is the weighted loss beta(t) L_norm, L_norm the unweighted one (B,); g is the residual
    before the clamp."""

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
class FACM:
    """The FACM objective; a component and its configuration in one.

    condition: what the network is conditioned on, and its null: Labels(10), Unconditional().
    velocity: TeacherVelocity() for distillation, DataVelocity() from scratch; both carry the guidance.
    label_dropout: fraction of samples trained at the null condition. From scratch with guidance it must be positive
        (0.1), or the null condition is never learnt; in distillation guidance is baked in and 0 is right.
    """

    condition: Condition
    velocity: VelocityTarget = TeacherVelocity()
    task: Task = ExpandedInterval()
    time: TimeDistribution = ArctanLogNormal(-0.8, 1.6)  # Table 5
    anchor: Distance = L2Cosine()  # d_1
    shortcut: Distance = NormL2()  # d_2
    alpha: Weight = OneMinusPower(0.5)  # Table 4
    beta: Weight = Cosine()  # Table 4
    clamp: float | None = 1.0
    label_dropout: float = 0.0
    derivative: Derivative = OpLevel()
    learns_shortcut = True
    global_draws = True
    parts = 2

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
    ) -> FACMTerms:
        """One evaluation on given draws: x_1, x_0 (B, ...), t (B,) in [0, 1], cond (B,), dropped (B,) bool.

        Raises ValueError on wrong shapes, times or labels, a missing teacher, or a network without the second time
        that the task needs.
        """
        anchor, shortcut = self._parts(network, x_1, x_0, t, cond, teacher, dropped)
        return FACMTerms(**vars(anchor), **vars(shortcut))

    def _parts(
        self,
        network: Any,
        x_1: Tensor,
        x_0: Tensor,
        t: Tensor,
        cond: Tensor | None,
        teacher: Any | None,
        dropped: Tensor | None,
    ) -> Iterator[Any]:
        """The anchor's terms, then the shortcut's, each computed when it is asked for."""
        check_task(self.task, network)
        self.condition.check(cond, len(x_1))
        network = same_dropout(network)
        F_anchor = Prediction(network, self.task.anchor, cond)
        F_shortcut = Prediction(network, self.task.shortcut, cond)

        x_t = interpolate(x_0, x_1, t)  # line 3
        v = self.velocity(network, teacher, Point(x_1, x_0, x_t, t, cond, dropped), self.condition, self.task)  # line 4
        F_FM = F_anchor(x_t, t)  # line 5
        L_FM = self.anchor(F_FM, v)  # Eq. 10
        yield AnchorTerms(x_t, v, F_FM, L_FM)

        F_CM, dF = self.derivative(F_shortcut, (x_t, t), (v, torch.ones_like(t)))  # line 6, Eq. 16
        target = shortcut_target(F_CM, dF, v, t, self.alpha(t), self.clamp)  # lines 7-8, Eq. 11-13
        L_norm = self.shortcut(F_CM, target.v_tar)  # Eq. 18
        L_CM = self.beta(t) * L_norm  # Eq. 14
        yield ShortcutTerms(F_CM, dF, target.v_bar, target.g, target.v_tar, L_norm, L_CM)

    def losses(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Iterator[Loss]:
        """As a call, in two parts: the anchor's graph can be freed by its backward pass before the shortcut's begins
        (the same gradient, at the peak of one)."""
        d = draw(batch, self.time, self.condition, self.label_dropout, rng)
        for part in self._parts(network, batch.x_1, d.x_0, d.t, d.cond, teacher, d.dropped):
            yield part.loss()

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        """Draw x_0, t and the dropped labels from ``rng`` (lines 1-2) and evaluate."""
        d = draw(batch, self.time, self.condition, self.label_dropout, rng)
        return self.evaluate(network, batch.x_1, d.x_0, d.t, d.cond, teacher, d.dropped).loss()  # line 9

"""MeanFlow (Geng et al., arXiv 2505.13447): the average velocity between any two times, by its own identity.

    u(x_t, t, r) = v + (r - t) du/dt     for t <= r, du/dt along the flow with r held

At r = t this is flow matching, at r = 1 the shortcut; one network answers for both and for all that is between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.tensors import check_time, expand
from facm.core.types import Batch, Loss
from facm.derivative import Derivative, OpLevel, Prediction, same_dropout
from facm.flow.conditions import Condition
from facm.flow.distances import NormL2, mean_square
from facm.flow.interpolant import Point, chosen, draw, rows, size
from facm.flow.paths import interpolate
from facm.flow.time_conditioning import AuxiliaryTime, check_task
from facm.flow.times import ArctanLogNormal, TimeDistribution
from facm.flow.velocity import TeacherVelocity, VelocityTarget, check_guidance


@dataclass(frozen=True)
class MeanFlowTerms:
    """Every intermediate: tensors (B, ...); error, the mean square of F - v_bar, and L_norm, the loss, (B,)."""

    x_t: Tensor
    v: Tensor
    F: Tensor
    dF: Tensor
    v_bar: Tensor
    error: Tensor
    L_norm: Tensor

    def loss(self) -> Loss:
        """With p = 1 the value is always about 1, whatever is learnt: the error is what to look at."""
        terms = {
            "shortcut": self.L_norm.detach(),
            "error": self.error.detach(),
            "tangent_rms": self.dF.square().flatten(1).mean(1).sqrt(),
        }
        return Loss(self.L_norm.mean(), terms)


@dataclass(frozen=True)
class MeanFlow:
    """The MeanFlow objective, for a network with ``auxiliary_time = True``.

    velocity: TeacherVelocity() for distillation; DataVelocity() from scratch, guided against the network's own velocity
        at r = t. Guidance is in the target, so the network is sampled with scale 1.
    time: of both times, which are two draws in order.
    equal: fraction of samples with r = t, the earlier of the two (plain flow matching): 0.75 from scratch; 0 in
        distillation, where the paper on FACM found it not to converge (App. A.3 c).
    p, c: the weight 1 / sg(e + c)^p of each sample's mean square e.
    label_dropout: as in :class:`facm.objectives.facm.FACM`.
    """

    condition: Condition
    velocity: VelocityTarget = TeacherVelocity()
    time: TimeDistribution = ArctanLogNormal(-0.8, 1.6)
    equal: float = 0.0
    p: float = 1.0
    c: float = 1e-3
    label_dropout: float = 0.0
    derivative: Derivative = OpLevel()
    task = AuxiliaryTime()
    learns_shortcut = True
    learns_jumps = True
    global_draws = True

    @property
    def learns_flow(self) -> bool:
        """Whether samples with r = t train the velocity itself."""
        return self.equal > 0

    def __post_init__(self) -> None:
        if not 0 <= self.equal <= 1:
            raise ValueError(f"equal = {self.equal}, expected a fraction in [0, 1]")
        if self.p < 0 or not self.c > 0:
            raise ValueError(f"MeanFlow: p = {self.p}, c = {self.c}, expected p >= 0 and c > 0")
        check_guidance(self.condition, self.velocity, self.label_dropout)

    def evaluate(
        self,
        network: Any,
        x_1: Tensor,
        x_0: Tensor,
        t: Tensor,
        r: Tensor,
        cond: Tensor | None = None,
        teacher: Any | None = None,
        dropped: Tensor | None = None,
    ) -> MeanFlowTerms:
        """One evaluation on given draws: x_1, x_0 (B, ...), t and r (B,) in [0, 1], cond (B,), dropped (B,) bool.

        Raises ValueError on wrong shapes, times or labels, a missing teacher, or a network that takes no r.
        """
        check_task(self.task, network)
        check_time(r, x_1, "r")
        self.condition.check(cond, len(x_1))
        network = same_dropout(network)
        x_t = interpolate(x_0, x_1, t)
        v = self.velocity(network, teacher, Point(x_1, x_0, x_t, t, cond, dropped), self.condition, self.task)
        to_r = Prediction(network, lambda t: {"t": t, "r": r}, cond)
        F, dF = self.derivative(to_r, (x_t, t), (v, torch.ones_like(t)))
        v_bar = v + expand(r - t, v) * dF
        return MeanFlowTerms(x_t, v, F, dF, v_bar, mean_square(F, v_bar), NormL2(self.p, self.c)(F, v_bar))

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        """Draw x_0, two times and what is dropped or made equal from ``rng``, and evaluate."""
        d = draw(batch, self.time, self.condition, self.label_dropout, rng)
        other = rows(self.time.sample(size(batch), rng), batch).to(d.t.dtype)
        t, r = torch.minimum(d.t, other), torch.maximum(d.t, other)
        if self.equal:
            r = torch.where(chosen(batch, self.equal, rng), t, r)
        return self.evaluate(network, batch.x_1, d.x_0, t, r, d.cond, teacher, d.dropped).loss()

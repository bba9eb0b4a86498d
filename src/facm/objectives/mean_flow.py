"""MeanFlow (Geng et al., arXiv 2505.13447): the average velocity between any two times, by its own identity.

    u(x_t, t, r) = v + (r - t) du/dt     for t <= r, du/dt along the flow with r held

At r = t this is flow matching, at r = 1 the shortcut; one network answers for both and for all that is between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.component import Fraction, component
from facm.core.objective import Condition, Objective, VelocityTarget
from facm.core.tensors import check_time, expand
from facm.core.types import Batch, Loss
from facm.derivative import Derivative, OpLevel, Prediction
from facm.flow.conditions import Dropout
from facm.flow.distances import Constant, Exponent, NormL2, mean_square
from facm.flow.interpolant import Interpolant, draw_subset, rows, step_size
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.times import ArctanLogNormal, TimeDistribution
from facm.flow.velocity import TeacherVelocity, check_guidance
from facm.objectives.consistency_target import checked_network


@dataclass(frozen=True)
class MeanFlowTerms:
    """Every intermediate of one evaluation.

    x_t, v, F, dF, v_bar: (B, ...).
    error: (B,), the mean square of F - v_bar.
    L_norm: (B,), the loss of each sample.
    """

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
@component
class MeanFlow(Objective):
    """The MeanFlow objective, for a network with ``auxiliary_time = True``.

    Guidance is in the target, so the network is sampled with guidance scale 1.
    """

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    velocity: VelocityTarget = TeacherVelocity()
    """Where v comes from: TeacherVelocity(), or DataVelocity(), guided against the network's own velocity at r = t."""
    time: TimeDistribution = ArctanLogNormal(-0.8, 1.6)
    """Distribution of both times, which are two draws in order."""
    data_proportion: Fraction = 0.0
    """Fraction of samples with r = t, which is flow matching: 0.75 from scratch, 0 in distillation (App. A.3 c)."""
    p: Exponent = 1.0
    """Exponent of the weight 1 / sg(e + c)^p of each sample's mean square e."""
    c: Constant = 1e-3
    """Constant of the weight 1 / sg(e + c)^p."""
    label_dropout: Dropout = 0.0
    """Fraction of samples trained at the null condition: 0.1 from scratch with guidance, 0 in distillation."""
    derivative: Derivative = OpLevel()
    """How the total derivative du/dt is computed."""
    task = AuxiliaryTime()
    learns_shortcut = True
    learns_jumps = True
    draws_for_whole_step = True

    @property
    def learns_flow(self) -> bool:  # type: ignore[override]
        """Whether samples with r = t train the velocity itself."""
        return self.data_proportion > 0

    def __post_init__(self) -> None:
        check_guidance(self, self.velocity)

    def evaluate(self, network: Any, point: Interpolant, r: Tensor, teacher: Any | None = None) -> MeanFlowTerms:
        """One evaluation at given draws; r (B,) in [0, 1] is the later time.

        Raises ValueError for times or labels that do not fit, a missing teacher, or a network that takes no r.
        """
        check_time(r, point.x_1, "r")
        network = checked_network(self, network, point)
        v = self.velocity(network, teacher, point, self.condition, self.task)
        to_r = Prediction(network, lambda t: {"t": t, "r": r}, point.cond)
        F, dF = self.derivative(to_r, (point.x_t, point.t), (v, torch.ones_like(point.t)))
        v_bar = v + expand(r - point.t, v) * dF
        return MeanFlowTerms(point.x_t, v, F, dF, v_bar, mean_square(F, v_bar), NormL2(self.p, self.c)(F, v_bar))

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        d = Interpolant.draw(batch, self.time, self.condition, self.label_dropout, rng)
        other = rows(self.time.sample(step_size(batch), rng), batch).to(d.t.dtype)
        t, r = torch.minimum(d.t, other), torch.maximum(d.t, other)
        if self.data_proportion:
            r = torch.where(draw_subset(batch, self.data_proportion, rng), t, r)
        return self.evaluate(network, Interpolant.between(d.x_0, d.x_1, t, d.cond, d.dropped), r, teacher).loss()

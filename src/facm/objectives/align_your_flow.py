"""Align Your Flow (Sabour, Fidler and Kreis, arXiv 2506.14603): flow maps by Eulerian map distillation, AYF-EMD.

    f(x_t, t, r) = x_t + (r - t) F(x_t, t, r)             the flow map from t to r >= t (Sec. 2)
    g = F - v - h (r - t) dF/dt                           minus df/dt (Thm. 3.2), its derivative warmed up (Sec. 3.4)
    target = sg(F) - g / (rms(g) + 0.1)                   normalised (Sec. 3.4)
    L = |F - target|^2                                    (Alg. 1)

df/dt is along the flow with r held: the map to r must not depend on where on the trajectory it starts. At r = 1 this is
consistency, at r -> t flow matching; warming up only to h = 0.99 keeps a share of the latter. The paper has noise at
t = 1; here it is at 0. The norm is the root mean square, which does not depend on the dimension, as in sCM here.

Left out: autoguidance by a second, weaker teacher and the network's input for its strength (Sec. 3.3; classifier-free
guidance is there), the Lagrangian objective AYF-LMD, and the adversarial fine-tuning (Sec. 3.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.component import Fraction, Images, Positive, component
from facm.core.objective import Condition, Objective, VelocityTarget
from facm.core.tensors import check_time, expand
from facm.core.types import Batch, Loss
from facm.derivative import Derivative, OpLevel, Prediction
from facm.flow.conditions import Dropout
from facm.flow.distances import mean_square
from facm.flow.interpolant import Interpolant, draw_noise, rows, step_size
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.times import LogitNormal, TimeDistribution
from facm.flow.velocity import TeacherVelocity, check_guidance
from facm.objectives.bound import Bound
from facm.objectives.consistency_target import checked_network


@dataclass(frozen=True)
class AYFTerms:
    """Every intermediate of one evaluation.

    x_t, v, F, dF: (B, ...).
    g: (B, ...), the tangent before it is normalised.
    v_tar: (B, ...), the target.
    L: (B,), the loss of each sample.
    """

    x_t: Tensor
    v: Tensor
    F: Tensor
    dF: Tensor
    g: Tensor
    v_tar: Tensor
    L: Tensor

    def loss(self) -> Loss:
        """The loss is what was normalised: about 1 whatever is learnt. The size of g says more."""
        terms = {
            "shortcut": self.L.detach(),
            "residual_rms": self.g.square().flatten(1).mean(1).sqrt(),
            "tangent_rms": self.dF.square().flatten(1).mean(1).sqrt(),
        }
        return Loss(self.L.mean(), terms)


@dataclass(frozen=True)
@component
class AlignYourFlow(Objective):
    """The AYF-EMD objective, for a network with ``auxiliary_time = True``; the paper distils from a flow.

    Guidance is in the target, so the network is sampled with guidance scale 1.
    """

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    velocity: VelocityTarget = TeacherVelocity()
    """Where the velocity v comes from: TeacherVelocity() for distillation, DataVelocity() from scratch."""
    interval: TimeDistribution = LogitNormal(-0.8, 1.0)
    """Distribution of r - t, the length of a jump; t is uniform in what is left (Alg. 1)."""
    warmup_images: Images = 20_480_000
    """Images over which dF/dt is ramped up linearly; the default is 10,000 steps at the paper's batch of 2048."""
    warmed_up: Fraction = 0.99
    """Share of dF/dt after the warm-up; below 1 a share of flow matching stays in the loss."""
    normalise: Positive | None = 0.1
    """Constant c added to the norm that the tangent is divided by; None for no normalisation."""
    label_dropout: Dropout = 0.0
    """Fraction of samples trained at the null condition."""
    derivative: Derivative = OpLevel()
    """How the total derivative dF/dt is computed."""
    task = AuxiliaryTime()
    learns_shortcut = True
    learns_jumps = True
    learns_flow = False
    draws_for_whole_step = True

    def __post_init__(self) -> None:
        check_guidance(self, self.velocity)

    def at(self, images_seen: int) -> Objective:
        """This objective at the training clock ``images_seen``: with as much of dF/dt as is warmed up by then."""
        return Bound(self, h=self.warmth(images_seen))

    def warmth(self, images_seen: int) -> float:
        """h: how much of dF/dt counts."""
        return min(self.warmed_up, images_seen / self.warmup_images) if self.warmup_images else self.warmed_up

    def evaluate(
        self, network: Any, point: Interpolant, r: Tensor, teacher: Any | None = None, h: float | None = None
    ) -> AYFTerms:
        """One evaluation at given draws; r (B,) in [0, 1] is the time that is jumped to; h: None for ``warmed_up``.

        Raises ValueError for times or labels that do not fit, a missing teacher, or a network that takes no r.
        """
        check_time(r, point.x_1, "r")
        network = checked_network(self, network, point)
        x_t, t = point.x_t, point.t
        v = self.velocity(network, teacher, point, self.condition, self.task)
        to_r = Prediction(network, lambda t: {"t": t, "r": r}, point.cond)
        F, dF = self.derivative(to_r, (x_t, t), (v, torch.ones_like(t)))
        warm = self.warmed_up if h is None else h
        g = F.detach() - v - warm * expand(r - t, v) * dF
        v_tar = F.detach() - self._normalised(g)
        return AYFTerms(x_t, v, F, dF, g, v_tar, mean_square(F, v_tar))

    def _normalised(self, g: Tensor) -> Tensor:
        if self.normalise is None:
            return g
        return g / (expand(g.square().flatten(1).mean(1).sqrt(), g) + self.normalise)

    def __call__(
        self,
        network: Any,
        batch: Batch,
        rng: torch.Generator,
        teacher: Any | None = None,
        h: float | None = None,
    ) -> Loss:
        n, x_0 = step_size(batch), draw_noise(batch, rng)
        apart = rows(self.interval.sample(n, rng), batch).to(x_0.dtype)
        t = rows(torch.rand(n, generator=rng, device=rng.device), batch).to(x_0.dtype) * (1 - apart)
        r = (t + apart).clamp(max=1)
        point = Interpolant.at(x_0, batch, t, self.condition, self.label_dropout, rng)
        return self.evaluate(network, point, r, teacher, h).loss()

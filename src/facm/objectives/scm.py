"""sCM (Lu and Song, arXiv 2410.11081), the stabilised continuous-time consistency model, on the linear path.

    g = alpha(t) (F - v - ramp (1 - t) dF/dt)      the tangent, its derivative warmed up
    target = sg(F) - g / (rms(g) + 0.1)            normalised, by a norm that does not depend on the dimension
    L = exp(w(t)) e - w(t)                         e = mean((F - target)^2), w learnt along with the network

The network's own part, pixel norm on its modulation, is LightningDiT(pixel_norm=True); without it this is the row that
collapses in Table 3 of the paper on FACM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from facm.core.modules import unwrapped
from facm.core.tensors import at_least_float32, expand
from facm.core.types import Batch, Loss, Objective
from facm.derivative import Derivative, OpLevel, Prediction, same_dropout
from facm.derivative.inside_forward import redirected
from facm.flow.conditions import Condition
from facm.flow.distances import mean_square
from facm.flow.interpolant import Point, draw
from facm.flow.paths import interpolate
from facm.flow.time_conditioning import ExpandedInterval, Task, check_task
from facm.flow.times import ArctanLogNormal, TimeDistribution
from facm.flow.velocity import TeacherVelocity, VelocityTarget, check_guidance
from facm.flow.weighting import Cosine, Weight
from facm.objectives.consistency_target import check_clamp


@dataclass(frozen=True)
class SCMTerms:
    """Every intermediate: tensors (B, ...), g before it is normalised; error, log_weight (None where it is not learnt)
    and the loss L_CM (B,)."""

    x_t: Tensor
    v: Tensor
    F_CM: Tensor
    dF: Tensor
    v_bar: Tensor
    g: Tensor
    v_tar: Tensor
    error: Tensor
    log_weight: Tensor | None
    L_CM: Tensor

    def loss(self) -> Loss:
        """The error is what was normalised: about 1 whatever is learnt. The size of g says more."""
        terms = {
            "shortcut": self.L_CM.detach(),
            "residual_rms": self.g.square().flatten(1).mean(1).sqrt(),
            "tangent_rms": self.dF.square().flatten(1).mean(1).sqrt(),
        }
        if self.log_weight is not None:
            terms["log_weight"] = self.log_weight.detach()
        return Loss(self.L_CM.mean(), terms)


@dataclass(frozen=True)
class SCM:
    """The sCM objective; what it shares with FACM is as in :class:`facm.objectives.facm.FACM`.

    From scratch with guidance: DataVelocity(guidance, at_shortcut=True), for c_FM is never trained here.
    warmup_images: the tangent's derivative counts in full from here on, and before in proportion to the images seen;
        the default is the paper's 10,000 steps, at FACM's batch of 1024. 0: from the start.
    alpha: weight of the tangent before it is normalised.
    normalise: the constant beside the norm; None for no normalisation.
    clamp: the paper's alternative to normalising, a bound on each element; None for none.
    adaptive: learn w(t), with the head of a network that was built with ``weight_head=True``. False: w = 0.
    """

    condition: Condition
    velocity: VelocityTarget = TeacherVelocity()
    task: Task = ExpandedInterval()
    time: TimeDistribution = ArctanLogNormal(-0.8, 1.6)
    warmup_images: int = 10_240_000
    alpha: Weight = Cosine()
    normalise: float | None = 0.1
    clamp: float | None = None
    adaptive: bool = True
    label_dropout: float = 0.0
    derivative: Derivative = OpLevel()
    learns_shortcut = True
    learns_flow = False
    global_draws = True

    def __post_init__(self) -> None:
        if self.warmup_images < 0:
            raise ValueError(f"warmup_images = {self.warmup_images}, expected 0 or more")
        if self.normalise is not None and not self.normalise > 0:
            raise ValueError(f"normalise = {self.normalise}, expected a positive constant, or None to leave it out")
        check_clamp(self.clamp)
        if self.normalise is not None and self.clamp is not None:
            raise ValueError(
                f"normalise = {self.normalise} and clamp = {self.clamp}: they are alternatives, expected one to be None"
            )
        check_guidance(self.condition, self.velocity, self.label_dropout)

    def check_network(self, network: Any) -> None:
        """Raise ValueError where w is to be learnt and the network has nothing to learn it with."""
        inner = unwrapped(network)
        if self.adaptive and not getattr(inner, "weight_head", False):
            raise ValueError(
                f"adaptive = True learns a weight w(t), but the network ({type(inner).__name__}) has no head for it: "
                "build it with weight_head=True (a network of your own: set its attribute weight_head = True and give "
                "it a method log_weight(t) -> (B,)), or use SCM(adaptive=False)"
            )

    def at(self, images_seen: int) -> Objective:
        """This objective at the training clock ``images_seen``: training asks for it before each step."""
        return partial(self, ramp=self.ramp(images_seen))

    def ramp(self, images_seen: int) -> float:
        """How much of the tangent's derivative counts, from 0 to 1."""
        return min(1.0, images_seen / self.warmup_images) if self.warmup_images else 1.0

    def evaluate(
        self,
        network: Any,
        x_1: Tensor,
        x_0: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        teacher: Any | None = None,
        dropped: Tensor | None = None,
        ramp: float = 1.0,
    ) -> SCMTerms:
        """One evaluation on given draws; arguments and errors as in FACM.evaluate, ramp in [0, 1]."""
        check_task(self.task, network)
        self.check_network(network)
        self.condition.check(cond, len(x_1))
        bare, network = network, same_dropout(network)
        x_t = interpolate(x_0, x_1, t)
        v = self.velocity(network, teacher, Point(x_1, x_0, x_t, t, cond, dropped), self.condition, self.task)
        F = Prediction(network, self.task.shortcut, cond)
        F_CM, dF = self.derivative(F, (x_t, t), (v, torch.ones_like(t)))
        v_bar = v + ramp * (1 - expand(t, v)) * dF
        g = expand(self.alpha(t), v) * (F_CM.detach() - v_bar)
        v_tar = F_CM.detach() - self._bounded(g)
        error = mean_square(F_CM, v_tar)
        w = log_weight(bare, t) if self.adaptive else None
        L_CM = error if w is None else w.exp() * error - w
        return SCMTerms(x_t, v, F_CM, dF, v_bar, g, v_tar, error, w, L_CM)

    def _bounded(self, g: Tensor) -> Tensor:
        if self.normalise is not None:
            return g / (expand(g.square().flatten(1).mean(1).sqrt(), g) + self.normalise)
        return g if self.clamp is None else g.clamp(-self.clamp, self.clamp)

    def __call__(
        self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None, ramp: float = 1.0
    ) -> Loss:
        d = draw(batch, self.time, self.condition, self.label_dropout, rng)
        return self.evaluate(network, batch.x_1, d.x_0, d.t, d.cond, teacher, d.dropped, ramp).loss()


def log_weight(network: Any, t: Tensor) -> Tensor:
    """The network's w(t) (B,), computed inside its own forward and a wrapper's, whose hooks gather the parameters of a
    sharded network and see to the gradients of any: what is computed outside would hang on F having been asked first.
    """
    inner = unwrapped(network)
    through = network if network is not inner else None
    w = redirected(inner, lambda forward, t: inner.log_weight(t), t, through=through)
    if w.shape != t.shape:
        raise ValueError(f"log_weight(t) has shape {tuple(w.shape)}, expected {tuple(t.shape)}: one number per sample")
    return at_least_float32(w)

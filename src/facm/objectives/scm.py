"""sCM (Lu and Song, arXiv 2410.11081), the stabilised continuous-time consistency model, on the linear path.

    g = alpha(t) (F - v - ramp (1 - t) dF/dt)      the tangent, its derivative warmed up
    target = sg(F) - g / (rms(g) + 0.1)            normalised, by a norm that does not depend on the dimension
    L = exp(w(t)) e - w(t)                         e = mean((F - target)^2), w learned with the network

The network's own part, pixel norm on its modulation, is LightningDiT(pixel_norm=True); without it this is the row that
collapses in Table 3 of the paper on FACM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.component import Images, Positive, component, refused
from facm.core.modules import unwrapped
from facm.core.objective import Condition, Objective, Task, VelocityTarget
from facm.core.tensors import at_least_float32, expand
from facm.core.types import Batch, Loss
from facm.derivative import Derivative, OpLevel, Prediction
from facm.derivative.inside_forward import redirected
from facm.flow.conditions import Dropout
from facm.flow.distances import mean_square
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import ExpandedInterval
from facm.flow.times import ArctanLogNormal, TimeDistribution
from facm.flow.velocity import TeacherVelocity, check_guidance
from facm.flow.weighting import Cosine, Weight
from facm.objectives.bound import Bound
from facm.objectives.consistency_target import checked_network


@dataclass(frozen=True)
class SCMTerms:
    """Every intermediate of one evaluation.

    x_t, v, F_CM, dF, v_bar, v_tar: (B, ...).
    g: (B, ...), the tangent before it is normalised.
    error: (B,), the mean square of F_CM - v_tar.
    log_weight: (B,), w(t); None where it is not learned.
    L_CM: (B,), the loss of each sample.
    """

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
@component
class SCM(Objective):
    """The sCM objective.

    From scratch with guidance take DataVelocity(guidance, at_shortcut=True): c_FM is never trained here.
    """

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    velocity: VelocityTarget = TeacherVelocity()
    """Where the velocity v comes from: TeacherVelocity() for distillation, DataVelocity() from scratch."""
    task: Task = ExpandedInterval()
    """How the network is told which velocity to predict: ExpandedInterval() or AuxiliaryTime() (Sec. 3.2.2)."""
    time: TimeDistribution = ArctanLogNormal(-0.8, 1.6)
    """Distribution of the training time t."""
    warmup_images: Images = 10_240_000
    """Images over which dF/dt is ramped up linearly; the default is 10,000 steps at FACM's batch of 1024."""
    alpha: Weight = Cosine()
    """Weight alpha(t) of the tangent before it is normalised."""
    normalise: Positive | None = 0.1
    """Constant added to the norm that the tangent is divided by; None for no normalisation."""
    clamp: Positive | None = None
    """Bound of each element of the tangent, the alternative to normalising; None for no bound."""
    adaptive: bool = True
    """Learn the weight w(t), with the head of a network built with weight_head=True; False: w = 0."""
    label_dropout: Dropout = 0.0
    """Fraction of samples trained at the null condition."""
    derivative: Derivative = OpLevel()
    """How the total derivative dF/dt is computed."""
    learns_shortcut = True
    learns_flow = False
    draws_for_whole_step = True

    def __post_init__(self) -> None:
        if self.normalise is not None and self.clamp is not None:
            raise refused(self, "clamp", f"None with normalise = {self.normalise}: they are alternatives")
        check_guidance(self, self.velocity)

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
        """This objective at the training clock ``images_seen``: with as much of the tangent as is warmed up by then."""
        return Bound(self, ramp=self.ramp(images_seen))

    def ramp(self, images_seen: int) -> float:
        """How much of the tangent's derivative counts, from 0 to 1."""
        return min(1.0, images_seen / self.warmup_images) if self.warmup_images else 1.0

    def evaluate(self, network: Any, point: Interpolant, teacher: Any | None = None, ramp: float = 1.0) -> SCMTerms:
        """One evaluation at given draws, ``ramp`` in [0, 1] of the tangent's derivative.

        Raises ValueError for labels that do not fit, a missing teacher, or a network without the second time or the
        head that is needed.
        """
        bare, network = network, checked_network(self, network, point)
        x_t, t = point.x_t, point.t
        v = self.velocity(network, teacher, point, self.condition, self.task)
        F = Prediction(network, self.task.shortcut, point.cond)
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
        point = Interpolant.draw(batch, self.time, self.condition, self.label_dropout, rng)
        return self.evaluate(network, point, teacher, ramp).loss()


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

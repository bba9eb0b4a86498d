"""Shortcut models (arXiv 2410.12557): a network told its step size, whose double step equals two single ones.

    L = d(F(x_t, t, t), v)                                          flow, d = 0
    L = d(F(x_t, t, t + 2d), sg (F(x_t, t, t + d) + F(x', t + d, t + 2d))/2),   x' = x_t + d F(x_t, t, t + d)

d = 1/128 ... 1/2 and t is a multiple of 2d, where a sampler of steps 2d passes. The step is told through the second
time r = t + d; single steps of the smallest d are asked at r = t, as a step too small to differ from the flow.
Guidance as in the paper: at the smallest d alone, which larger steps inherit. Left out: an EMA of the network for the
targets (this is the network itself, frozen), and the authors' clipping of targets to [-4, 4].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from facm.core.component import Range, component, refused
from facm.core.cond import Cond, taken
from facm.core.objective import Condition, Objective, VelocityTarget, guidance_scale
from facm.core.tensors import at_least_float32, check_time, expand
from facm.core.types import Batch, Loss
from facm.flow.conditions import Dropout
from facm.flow.distances import L2, Distance
from facm.flow.guidance import NO_GUIDANCE, Guidance, extrapolate
from facm.flow.interpolant import Interpolant, draw_noise, draw_subset, rows, step_size
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.times import TimeDistribution, Uniform
from facm.flow.velocity import DataVelocity, check_guidance
from facm.objectives.consistency_target import checked_network


@dataclass(frozen=True)
class ShortcutModelTerms:
    """Every intermediate of one evaluation.

    x_t: (B, ...).
    v_tar: (B, ...), the target.
    F: (B, ...), the prediction.
    L: (B,), the loss of each sample.
    bootstrapped: (B,) bool, the samples whose target is the network's own two steps.
    """

    x_t: Tensor
    v_tar: Tensor
    F: Tensor
    L: Tensor
    bootstrapped: Tensor

    def loss(self) -> Loss:
        L = self.L.detach()
        return Loss(self.L.mean(), {"flow": L[~self.bootstrapped], "self_consistency": L[self.bootstrapped]})


@dataclass(frozen=True)
@component
class ShortcutModel(Objective):
    """The objective of shortcut models, for a network with ``auxiliary_time = True``.

    A network trained with guidance is sampled with guidance at d = 0 only.
    """

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    velocity: VelocityTarget = DataVelocity()
    """Target of the flow: DataVelocity(), or TeacherVelocity() for distillation."""
    guidance: Guidance = NO_GUIDANCE
    """Classifier-free guidance of the smallest bootstrapped step."""
    time: TimeDistribution = Uniform()
    """Distribution of the flow's times."""
    distance: Distance = L2()
    """Distance d of prediction and target."""
    bootstrap_every: Annotated[int, Range("[2, 1048576]")] = 4
    """One of so many samples is bootstrapped, the others learn the flow; at least 2, for the flow anchors the steps."""
    denoise_timesteps: Annotated[int, Range("[2, 1073741824]")] = 128
    """Number of steps that counts as the flow itself; a power of two."""
    label_dropout: Dropout = 0.1
    """Fraction of the flow's samples trained at the null condition; bootstrapped ones keep their labels."""
    task = AuxiliaryTime()
    learns_jumps = True
    draws_for_whole_step = True

    @property
    def group_size(self) -> int:  # type: ignore[override]
        """Samples of which one is bootstrapped."""
        return self.bootstrap_every

    def __post_init__(self) -> None:
        check_guidance(self, self.velocity)
        check_guidance(self, DataVelocity(self.guidance))
        if self.guidance.strongest > 1 and guidance_scale(self.velocity) > 1:
            raise refused(self, "guidance", f"none with velocity = {self.velocity}: one of them guided")
        if self.denoise_timesteps & (self.denoise_timesteps - 1):
            raise refused(self, "denoise_timesteps", "a power of two")

    def check_nfe(self, nfe: int) -> None:
        """Raise ValueError unless jumps of 1/nfe were trained."""
        if nfe < 1 or nfe & (nfe - 1) or nfe >= self.denoise_timesteps:
            raise ValueError(
                f"nfe = {nfe} jumps, expected a power of two up to {self.denoise_timesteps // 2}, the steps that were "
                f"trained; {self.denoise_timesteps} and more are Euler's, which asks for the flow"
            )

    def evaluate(self, network: Any, point: Interpolant, d: Tensor, teacher: Any | None = None) -> ShortcutModelTerms:
        """One evaluation at given draws; d (B,) is the single step of a bootstrapped sample and 0 of the flow's,
        t + 2d <= 1.

        Raises ValueError for times or labels that do not fit, a missing teacher, or a network without a second time.
        """
        x_t, t, cond = point.x_t, point.t, point.cond
        check_time(d, point.x_1, "d")
        if d.device.type == "cpu" and not bool((t + 2 * d <= 1).all()):
            raise ValueError(f"t + 2 d reaches {float((t + 2 * d).max()):g}, expected at most 1")
        network = checked_network(self, network, point)
        bootstrapped = d > 0
        v_tar = self.velocity(network, teacher, point, self.condition, self.task)
        which = bootstrapped.nonzero().squeeze(1)
        if len(which):
            label = taken(cond, which)
            v_tar = v_tar.index_copy(0, which, self._two_steps(network, x_t[which], t[which], d[which], label))
        F = at_least_float32(network(x_t, cond=cond, t=t, r=t + 2 * d))
        return ShortcutModelTerms(x_t, v_tar, F, self.distance(F, v_tar), bootstrapped)

    @torch.no_grad()
    def _two_steps(self, network: Any, x: Tensor, t: Tensor, d: Tensor, cond: Cond) -> Tensor:
        """The average velocity of two single steps from x."""
        first = self._step(network, x, t, d, cond)
        return (first + self._step(network, x + expand(d, x) * first, t + d, d, cond)) / 2

    def _step(self, network: Any, x: Tensor, t: Tensor, d: Tensor, cond: Cond) -> Tensor:
        smallest = d * self.denoise_timesteps <= 1
        r = torch.where(smallest, t, t + d)
        v_c = at_least_float32(network(x, cond=cond, t=t, r=r))
        if self.guidance.strongest == 1:
            return v_c
        v_u = at_least_float32(network(x, cond=self.condition.null(cond), t=t, r=r))
        guided = expand(smallest & self.guidance.active(t), x)
        return torch.where(guided, extrapolate(v_c, v_u, self.guidance.at(t, x)), v_c)

    def steps_from(self, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """u, w (n,) uniform in [0, 1) -> the single step d and its time t, a multiple of 2d."""
        sizes = int(math.log2(self.denoise_timesteps))
        double = 2.0 ** (-(u * sizes).floor())  # 1, 1/2, ... 2/finest
        return double / 2, (w / double).floor() * double

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        n, B = step_size(batch), len(batch.x_1)
        if self.bootstrap_every > B:
            raise ValueError(
                f"{B} samples at once and bootstrap_every = {self.bootstrap_every}, expected at least one bootstrapped "
                "sample"
            )
        x_0 = draw_noise(batch, rng)
        t = rows(self.time.sample(n, rng), batch).to(x_0.dtype)
        u, w = (rows(torch.rand(n, generator=rng, device=rng.device), batch).to(x_0.dtype) for _ in range(2))
        bootstrapped = (torch.arange(B, device=t.device) + batch.start) % self.bootstrap_every == 0
        d, t_boot = self.steps_from(u, w)
        t, d = torch.where(bootstrapped, t_boot, t), torch.where(bootstrapped, d, 0)
        cond, dropped = batch.cond, None
        if self.label_dropout:
            dropped = draw_subset(batch, self.label_dropout, rng) & ~bootstrapped
            cond = self.condition.drop(cond, dropped)
        return self.evaluate(network, Interpolant.between(x_0, batch.x_1, t, cond, dropped), d, teacher).loss()

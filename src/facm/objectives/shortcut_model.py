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
from typing import Any

import torch
from torch import Tensor

from facm.core.tensors import at_least_float32, check_time, expand
from facm.core.types import Batch, Loss
from facm.derivative import same_dropout
from facm.flow.conditions import Condition
from facm.flow.distances import L2, Distance
from facm.flow.guidance import NO_GUIDANCE, Guidance, extrapolate
from facm.flow.interpolant import Point, chosen, noise, rows, size
from facm.flow.paths import interpolate
from facm.flow.time_conditioning import AuxiliaryTime, check_task
from facm.flow.times import TimeDistribution, Uniform
from facm.flow.velocity import DataVelocity, VelocityTarget, check_guidance


@dataclass(frozen=True)
class ShortcutModelTerms:
    """x_t, the target v_tar and the prediction F (B, ...), the loss (B,), and which samples were bootstrapped (B,)."""

    x_t: Tensor
    v_tar: Tensor
    F: Tensor
    L: Tensor
    bootstrapped: Tensor

    def loss(self) -> Loss:
        L = self.L.detach()
        return Loss(self.L.mean(), {"flow": L[~self.bootstrapped], "self_consistency": L[self.bootstrapped]})


@dataclass(frozen=True)
class ShortcutModel:
    """One of ``every`` samples is bootstrapped, the others learn the flow; the network needs a second time.

    finest: the number of steps that counts as the flow itself, a power of two. velocity: the flow's target, the
    teacher's for distillation. guidance: of the smallest bootstrapped step; a network trained with it is sampled with
    guidance at d = 0 only. label_dropout: of the flow's samples; bootstrapped ones keep their labels.
    """

    condition: Condition
    velocity: VelocityTarget = DataVelocity()
    guidance: Guidance = NO_GUIDANCE
    time: TimeDistribution = Uniform()
    distance: Distance = L2()
    every: int = 4
    finest: int = 128
    label_dropout: float = 0.1
    task = AuxiliaryTime()
    learns_jumps = True
    global_draws = True

    def __post_init__(self) -> None:
        check_guidance(self.condition, self.velocity, self.label_dropout)
        check_guidance(self.condition, DataVelocity(self.guidance), self.label_dropout)
        if self.guidance.scale > 1 and getattr(self.velocity, "guidance", NO_GUIDANCE).scale > 1:
            raise ValueError(f"guidance = {self.guidance} and velocity = {self.velocity}: expected one of them guided")
        if self.finest < 2 or self.finest & (self.finest - 1):
            raise ValueError(f"finest = {self.finest}, expected a power of two from 2 on")
        if self.every < 2:
            raise ValueError(f"every = {self.every}, expected at least 2: the flow anchors the steps")

    def check_nfe(self, nfe: int) -> None:
        """Raise ValueError unless jumps of 1/nfe were trained."""
        if nfe < 1 or nfe & (nfe - 1) or nfe >= self.finest:
            raise ValueError(
                f"nfe = {nfe} jumps, expected a power of two up to {self.finest // 2}, the steps that were trained; "
                f"{self.finest} and more are Euler's, which asks for the flow"
            )

    def evaluate(
        self,
        network: Any,
        x_1: Tensor,
        x_0: Tensor,
        t: Tensor,
        d: Tensor,
        cond: Tensor | None = None,
        teacher: Any | None = None,
        dropped: Tensor | None = None,
    ) -> ShortcutModelTerms:
        """One evaluation on given draws: x_1, x_0 (B, ...), t (B,), d (B,) the single step of a bootstrapped sample
        and 0 of the flow's, t + 2d <= 1, cond (B,) after dropout, dropped (B,) bool.

        Raises ValueError on wrong shapes, times or labels, a missing teacher, or a network without a second time.
        """
        check_task(self.task, network)
        self.condition.check(cond, len(x_1))
        check_time(d, x_1, "d")
        x_t = interpolate(x_0, x_1, t)
        if d.device.type == "cpu" and not bool((t + 2 * d <= 1).all()):
            raise ValueError(f"t + 2 d reaches {float((t + 2 * d).max()):g}, expected at most 1")
        network = same_dropout(network)
        bootstrapped = d > 0
        v_tar = self.velocity(network, teacher, Point(x_1, x_0, x_t, t, cond, dropped), self.condition, self.task)
        which = bootstrapped.nonzero().squeeze(1)
        if len(which):
            label = None if cond is None else cond[which]
            v_tar = v_tar.index_copy(0, which, self._two_steps(network, x_t[which], t[which], d[which], label))
        F = at_least_float32(network(x_t, cond=cond, t=t, r=t + 2 * d))
        return ShortcutModelTerms(x_t, v_tar, F, self.distance(F, v_tar), bootstrapped)

    @torch.no_grad()
    def _two_steps(self, network: Any, x: Tensor, t: Tensor, d: Tensor, cond: Tensor | None) -> Tensor:
        """The average velocity of two single steps from x."""
        first = self._step(network, x, t, d, cond)
        return (first + self._step(network, x + expand(d, x) * first, t + d, d, cond)) / 2

    def _step(self, network: Any, x: Tensor, t: Tensor, d: Tensor, cond: Tensor | None) -> Tensor:
        smallest = d * self.finest <= 1
        r = torch.where(smallest, t, t + d)
        v_c = at_least_float32(network(x, cond=cond, t=t, r=r))
        if self.guidance.scale == 1:
            return v_c
        v_u = at_least_float32(network(x, cond=self.condition.null(cond), t=t, r=r))
        guided = expand(smallest & self.guidance.active(t), x)
        return torch.where(guided, extrapolate(v_c, v_u, self.guidance.scale), v_c)

    def steps_from(self, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """u, w (n,) uniform in [0, 1) -> the single step d and its time t, a multiple of 2d."""
        sizes = int(math.log2(self.finest))
        double = 2.0 ** (-(u * sizes).floor())  # 1, 1/2, ... 2/finest
        return double / 2, (w / double).floor() * double

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        n, B = size(batch), len(batch.x_1)
        if self.every > B:
            raise ValueError(f"{B} samples at once and every = {self.every}, expected at least one bootstrapped sample")
        x_0 = noise(batch, rng)
        t = rows(self.time.sample(n, rng), batch).to(x_0.dtype)
        u, w = (rows(torch.rand(n, generator=rng, device=rng.device), batch).to(x_0.dtype) for _ in range(2))
        bootstrapped = (torch.arange(B, device=t.device) + batch.start) % self.every == 0
        d, t_boot = self.steps_from(u, w)
        t, d = torch.where(bootstrapped, t_boot, t), torch.where(bootstrapped, d, 0)
        cond, dropped = batch.cond, None
        if self.label_dropout:
            dropped = chosen(batch, self.label_dropout, rng) & ~bootstrapped
            cond = self.condition.drop(cond, dropped)
        return self.evaluate(network, batch.x_1, x_0, t, d, cond, teacher, dropped).loss()

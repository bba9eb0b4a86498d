"""Inductive moment matching (arXiv 2503.07565) on the linear path: M particles a group, matched in distribution.

In this package's time (noise at 0; the paper's is reversed) t < r <= s, all particles of a group sharing them:

    y_t = x_t + (s - t) F(x_t, t, s)          jumped from t, with gradient
    y_r = x_r + (s - r) F(x_r, r, s)          jumped from r, frozen; x_r has the noise and the data of x_t
    L = w(t) mean_jk [k(y_t^j, y_t^k) + k(y_r^j, y_r^k) - 2 k(y_t^j, y_r^k)]
    k(x, y) = exp(-max(|x - y|_2, 1e-8)/(D (s - t)))

r is where eta = (1 - t)/t has fallen by a constant, at least ``gap`` ahead of t, at most s. With b and a,
w = sigmoid(b - lambda) lambda'/2 t^a/(t^2 + (1 - t)^2), lambda = 2 ln(t/(1 - t)) the log signal-to-noise ratio.

This is the paper's Euler-FM form in units of its sigma_data. Left out: its simple-EDM and identity forms (an adapter of
the network), other kernels, and an EMA of the network for y_r (the paper has none).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from facm.core.component import Count, Range, component
from facm.core.objective import Condition, Objective
from facm.core.tensors import at_least_float32, check_same_shape, check_time, expand
from facm.core.types import Batch, Loss
from facm.flow.conditions import Dropout, check_label_dropout
from facm.flow.interpolant import Interpolant, draw_noise, rows, step_size
from facm.flow.paths import interpolate
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.times import TimeDistribution, Uniform
from facm.objectives.consistency_target import checked_network


def laplace(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """k(x_j, y_k) within each group: x, y (G, M, D), scale (G,) -> (G, M, M)."""
    # not torch.cdist: its gradient at a distance of 0, which every particle has to itself, must be 0
    square = (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(3)
    return torch.exp(-square.clamp(min=1e-16).sqrt() / (x.shape[2] * scale[:, None, None]))


@dataclass(frozen=True)
class IMMTerms:
    """Every intermediate of one evaluation.

    r: (B,), the time of the frozen jump.
    y_t, y_r: (B, ...), the samples jumped to s from t and from r.
    L: (B,), the loss of each sample's group.
    """

    r: Tensor
    y_t: Tensor
    y_r: Tensor
    L: Tensor

    def loss(self) -> Loss:
        return Loss(self.L.mean(), {"moments": self.L.detach()})


@dataclass(frozen=True)
@component
class IMM(Objective):
    """The objective of inductive moment matching, for a network with ``auxiliary_time = True``."""

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    time: TimeDistribution = Uniform(0.006, 1.0)
    """Distribution of t; the paper's stops at 0.006 (its T = 0.994), Uniform() reaches 0, where the sampler starts."""
    particles: Count = 4
    """Number M of particles in a group, which are neighbours in the batch."""
    decrement: Annotated[float, Range("[0, 1e6]")] = 160 / 2**12
    """Amount by which eta = (1 - t)/t falls from t to r: eta_max/2^k with the paper's 160 and k = 12."""
    gap: Annotated[float, Range("(0, 1]")] = 1e-4
    """Smallest r - t."""
    a: Annotated[float, Range("[1, 100]")] = 1.0
    """Exponent a of the weight w(t); at least 1, for below, the weight is infinite at t = 0."""
    b: Annotated[float, Range("[-50, 50]")] = 5.0
    """Bias b of the weight w(t)."""
    label_dropout: Dropout = 0.1
    """Fraction of samples trained at the null condition, which guidance in sampling needs."""
    task = AuxiliaryTime()
    learns_shortcut = True
    learns_flow = False
    learns_jumps = True
    draws_for_whole_step = True

    @property
    def group_size(self) -> int:  # type: ignore[override]
        """Particles in a group."""
        return self.particles

    def __post_init__(self) -> None:
        check_label_dropout(self)

    def ahead(self, t: Tensor, s: Tensor) -> Tensor:
        """r (B,): where eta is ``decrement`` smaller than at t, in [t + gap, s], or s where that is nearer."""
        r = t / (1 - self.decrement * t).clamp(min=1e-8)
        return torch.minimum(s, torch.maximum(r, t + self.gap))

    def weight(self, t: Tensor) -> Tensor:
        """w(t) (B,), finite at both ends: written out, 1 - t cancels against sigmoid's."""
        c = math.exp(self.b) * (1 - t)
        return c * t ** (self.a - 1) / ((c * (1 - t) + t**2) * (t**2 + (1 - t) ** 2))

    def evaluate(self, network: Any, point: Interpolant, s: Tensor) -> IMMTerms:
        """One evaluation at given draws; s (B,) is the time jumped to, t < s. Both times are equal within each group of
        ``particles`` neighbours.

        Raises ValueError for times, groups or labels that do not fit, or a network without a second time.
        """
        x_0, x_1, t, cond = point.x_0, point.x_1, point.t, point.cond
        check_same_shape(t=t, s=s)
        check_time(s, x_1, "s")
        self._check_groups(len(x_1))
        if s.device.type == "cpu":
            self._check_times(t, s)
        network, r = checked_network(self, network, point), self.ahead(t, s)

        def jump(start: Tensor) -> Tensor:
            x = interpolate(x_0, x_1, start)
            return x + expand(s - start, x) * at_least_float32(network(x, cond=cond, t=start, r=s))

        with torch.no_grad():
            y_r = jump(r)
        y_t = jump(t)
        a, b = (y.reshape(-1, self.particles, y[0].numel()) for y in (y_t, y_r))
        scale = (s - t)[:: self.particles].clamp(min=1e-8)
        kernels = laplace(a, a, scale) + laplace(b, b, scale) - 2 * laplace(a, b, scale)
        L = kernels.mean((1, 2)).repeat_interleave(self.particles)
        return IMMTerms(r, y_t, y_r, self.weight(t) * L)

    def _check_groups(self, n: int, start: int = 0) -> None:
        if n % self.particles or start % self.particles:
            raise ValueError(
                f"{n} samples at once from {start} on, expected whole groups of particles = {self.particles}: "
                "the batch size, of each rank and micro-batch, is to be a multiple of it"
            )

    def _check_times(self, t: Tensor, s: Tensor) -> None:
        if not bool((t <= s).all()):
            raise ValueError("expected t < s: s is the time closer to data")
        if any(bool((c.reshape(-1, self.particles) != c[:: self.particles, None]).any()) for c in (t, s)):
            raise ValueError(f"expected one t and one s in each group of particles = {self.particles}")

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        self._check_groups(len(batch.x_1), batch.start)
        x_0 = draw_noise(batch, rng)
        groups = -(-step_size(batch) // self.particles)
        t = self.time.sample(groups, rng)
        s = t + (1 - t) * torch.rand(groups, generator=rng, device=rng.device)
        t, s = (rows(c.repeat_interleave(self.particles), batch).to(x_0.dtype) for c in (t, s))
        point = Interpolant.at(x_0, batch, t, self.condition, self.label_dropout, rng)
        return self.evaluate(network, point, s).loss()

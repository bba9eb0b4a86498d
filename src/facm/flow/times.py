"""Distributions of the training time t in [0, 1]; t = 0 is noise, t = 1 is data.

Each maps injected standard normals or uniforms to times by a pure function, so that a golden vector or a slow
transcription can drive it, and ``sample`` draws from ``rng`` on the generator's own device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from torch import Tensor

from facm.core.component import Finite, Fraction, Positive, Range, component, refused


@runtime_checkable
class TimeDistribution(Protocol):
    """A distribution of the training time t."""

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """n times (n,) float32 in [0, 1], drawn from ``rng``."""
        ...


def _normal(n: int, rng: torch.Generator) -> Tensor:
    return torch.randn(n, generator=rng, device=rng.device)


@dataclass(frozen=True)
@component
class Sorted(TimeDistribution):
    """The times of another distribution in increasing order.

    Times and samples of a step are independent, so that the order changes no expectation. A part of a step then has
    neighbouring times: with a teacher of two experts almost every micro-batch, and every rank, asks one of them.
    """

    time: TimeDistribution
    """Distribution of the times."""

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.time.sample(n, rng).sort().values


@dataclass(frozen=True)
@component
class Uniform(TimeDistribution):
    """t ~ U[low, high]."""

    low: Fraction = 0.0
    """Earliest time, at least 0."""
    high: Fraction = 1.0
    """Latest time, at most 1."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise refused(self, "low", f"less than high = {self.high}")

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.low + (self.high - self.low) * torch.rand(n, generator=rng, device=rng.device)


@dataclass(frozen=True)
@component
class Squeezed(TimeDistribution):
    """low + (high - low) t for t of another distribution: the same times within a phase."""

    time: TimeDistribution
    """The distribution on [0, 1]."""
    low: Fraction = 0.0
    """Earliest time, at least 0."""
    high: Fraction = 1.0
    """Latest time, at most 1."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise refused(self, "low", f"less than high = {self.high}")

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.low + (self.high - self.low) * self.time.sample(n, rng)


@dataclass(frozen=True)
@component
class Shifted(TimeDistribution):
    """s t / (1 + (s - 1) t) for t of another distribution, as samplers shift their schedules.

    In this package's time s < 1 leans towards noise. Families state the shift of sigma = 1 - t, which is 1 / s: Wan's
    shift 5 is ``Shifted(Uniform(), 0.2)``.
    """

    time: TimeDistribution = Uniform()
    """The distribution that is shifted."""
    shift: Annotated[float, Range("[1e-6, 1e6]")] = 1.0
    """s above 0; 1 changes nothing."""

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        t = self.time.sample(n, rng)
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True)
@component
class LogitNormal(TimeDistribution):
    """t = sigmoid(mean - std z), z ~ N(0, 1); a positive z leads towards noise, as in Eq. 20."""

    mean: Finite = 0.0
    """Mean of the logit of t; a positive one leans towards data."""
    std: Positive = 1.0
    """Standard deviation of the logit of t, above 0."""

    def from_normal(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.mean - self.std * z)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.from_normal(_normal(n, rng))


@dataclass(frozen=True)
@component
class ArctanLogNormal(TimeDistribution):
    """ln sigma ~ N(mean, std^2), t = 1 - (2/pi) arctan(sigma)  (Eq. 20).

    ImageNet (-0.8, 1.6), CIFAR-10 (-1.0, 1.4) (Table 5). The median of t is 0.73 for (-0.8, 1.6).
    """

    mean: Finite = -0.8
    """Mean of ln sigma, P_mean in Table 5; a smaller one leans towards data."""
    std: Positive = 1.6
    """Standard deviation of ln sigma, P_std in Table 5, above 0."""

    def from_normal(self, z: Tensor) -> Tensor:
        return 1 - (2 / math.pi) * torch.arctan(torch.exp(self.mean + self.std * z))

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.from_normal(_normal(n, rng))

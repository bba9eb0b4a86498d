"""Which two times discrete-time consistency compares, t < s, and how much a pair weighs: iCT's and ECT's schedules.

Both papers think in the noise level sigma = (1 - t)/t, where data is sigma = 0. A schedule is a frozen component that
knows its place in training as ``seen``; ``at(images_seen)`` gives the same schedule at another place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Protocol, runtime_checkable

import torch
from torch import Tensor

from facm.core.component import Finite, Images, Positive, Range, component, refused


def noise_level(t: Tensor) -> Tensor:
    """sigma = (1 - t)/t; infinite at t = 0."""
    return (1 - t) / t


def time_at(sigma: Tensor) -> Tensor:
    """t = 1/(1 + sigma)."""
    return 1 / (1 + sigma)


def apart(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """t, s (n,) with t < s <= 1 in their own precision, which a late gap may be below: s is then the next number."""
    one = torch.ones_like(t)
    t = torch.minimum(t, torch.nextafter(one, 0 * one))
    return t, torch.maximum(s, torch.nextafter(t, one))


@runtime_checkable
class PairSchedule(Protocol):
    """A distribution of pairs of times t < s that changes during training."""

    @property
    def most_steps(self) -> int | None:
        """Most sampling steps that the trained network supports; None for any number."""
        ...

    def at(self, images_seen: int) -> PairSchedule:
        """The schedule at the training clock ``images_seen``."""
        ...

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """t, s (n,) float64 with 0 <= t < s <= 1, drawn from ``rng``."""
        ...


Steps = Annotated[int, Range("[1, 1048576]")]
"""A number of steps, each of which has its noise level in memory."""
Noise = Annotated[float, Range("[1e-6, 1e6]")]
"""A noise level of a time that float32 tells from 0 and from 1."""


FAR = 6
"""Standard deviations beyond which a normal distribution has no mass that float64 could tell the steps by."""


@dataclass(frozen=True)
@component
class DoublingSteps(PairSchedule):
    """iCT (arXiv 2310.14189): neighbours on a grid of noise levels whose number of steps doubles during training.

    N = min(first * 2^floor(seen/K'), last) steps with K' = floor(images/(log2 floor(last/first) + 1)); N + 1 levels
    sigma_i = (sigma_min^(1/rho) + i/N (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho; step i is drawn with the mass that
    ln sigma ~ N(mean, std^2) has between its ends.

    sigma_min is subtracted from every level, so that the last is data itself: there f is the identity in this package,
    at sigma_min in the paper. The noisiest time is 1/(1 + sigma_max) = 0.012; a sampler asks at 0.
    """

    images: Annotated[int, Range("[1, 999999999999]")]
    """Length of the training run in images seen."""
    first: Steps = 10
    """Number of steps at the start of training."""
    last: Steps = 1280
    """Largest number of steps."""
    sigma_min: Noise = 0.002
    """Lowest noise level, above 0."""
    sigma_max: Noise = 80.0
    """Highest noise level."""
    rho: Annotated[float, Range("[1, 100]")] = 7.0
    """Exponent of the spacing between noise levels."""
    mean: Finite = -1.1
    """Mean of ln sigma."""
    std: Positive = 2.0
    """Standard deviation of ln sigma."""
    seen: Images = 0
    """Images seen so far; training sets it."""

    def __post_init__(self) -> None:
        if not self.first <= self.last:
            raise refused(self, "first", f"at most last = {self.last}")
        if not self.sigma_min < self.sigma_max:
            raise refused(self, "sigma_min", f"less than sigma_max = {self.sigma_max}")
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        if not low - FAR * self.std < self.mean < high + FAR * self.std:
            raise refused(
                self, "mean", f"less than {FAR} std from the noise levels, ln sigma within [{low:.3g}, {high:.3g}]"
            )
        if self.stage < 1:
            raise refused(
                self, "images", f"at least one for each of the numbers of steps from {self.first} to {self.last}"
            )

    @property
    def stage(self) -> int:
        """Images between two doublings, K'."""
        return math.floor(self.images / (math.log2(self.last // self.first) + 1))

    @property
    def steps(self) -> int:
        """N, now."""
        doublings = min(self.seen // self.stage, 64)  # long past the last one on any run
        return min(self.first * 2**doublings, self.last)

    @property
    def most_steps(self) -> int:
        return self.last

    def at(self, images_seen: int) -> DoublingSteps:
        return replace(self, seen=images_seen)

    def levels(self, device: torch.device | None = None) -> Tensor:
        """The N + 1 noise levels, ascending from sigma_min to sigma_max: float64."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        i = torch.arange(self.steps + 1, dtype=torch.float64, device=device)
        return (low + i / self.steps * (high - low)) ** self.rho

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.from_uniform(torch.rand(n, generator=rng, device=rng.device, dtype=torch.float64))

    def from_uniform(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u (n,) float64 in [0, 1) -> t, s (n,): the step at quantile u."""
        levels = self.levels(u.device)
        mass = torch.special.ndtr((levels.log() - self.mean) / self.std).diff()
        step = torch.searchsorted(mass.cumsum(0) / mass.sum(), u, right=True).clamp(max=self.steps - 1)
        clean = levels - levels[0]
        return apart(time_at(clean[step + 1]), time_at(clean[step]))


@dataclass(frozen=True)
@component
class ShrinkingGap(PairSchedule):
    """ECT (arXiv 2406.14548): ln sigma ~ N(mean, std^2), and its partner at sigma (1 - n(sigma)/q^a), at least 0.

    n(sigma) = 1 + k sigmoid(-b sigma); a = 1 at the start of training and one more after every ``stage`` images, up to
    ``stages``. At first most partners are data itself, which is training of a denoiser; later they close in.
    The defaults are those of CIFAR-10; ImageNet has q = 4. Meant to start from a trained flow or diffusion network.
    """

    stage: Annotated[int, Range("[1, 999999999999]")] = 3_200_000
    """Images between two increases of the exponent a."""
    stages: Annotated[int, Range("[1, 1024]")] = 8
    """Largest exponent a."""
    q: Annotated[float, Range("(1, 1e6]")] = 2.0
    """Base of the shrinking gap, above 1."""
    k: Annotated[float, Range("[0, 1e6]")] = 8.0
    """Factor of the sigmoid in n(sigma); 0 or more."""
    b: Finite = 1.0
    """Slope of the sigmoid in n(sigma)."""
    mean: Finite = -1.1
    """Mean of ln sigma."""
    std: Positive = 2.0
    """Standard deviation of ln sigma."""
    seen: Images = 0
    """Images seen so far; training sets it."""

    @property
    def exponent(self) -> int:
        """a, now."""
        return min(1 + self.seen // self.stage, self.stages)

    @property
    def most_steps(self) -> None:
        return None

    def at(self, images_seen: int) -> ShrinkingGap:
        return replace(self, seen=images_seen)

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.from_normal(torch.randn(n, generator=rng, device=rng.device, dtype=torch.float64))

    def from_normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (n,) float64 -> t, s (n,)."""
        sigma = torch.exp(self.mean + self.std * z)
        gap = (1 + self.k * torch.sigmoid(-self.b * sigma)) * self.q**-self.exponent
        return apart(time_at(sigma), time_at(sigma * (1 - gap).clamp(min=0)))


@runtime_checkable
class PairWeight(Protocol):
    """The weight of a pair of times, (B,) twice -> (B,)."""

    def __call__(self, t: Tensor, s: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class OverStep(PairWeight):
    """1/(sigma_t - sigma_s): iCT's."""

    def __call__(self, t: Tensor, s: Tensor) -> Tensor:
        return t * s / (s - t)  # s - t is exact for close times, where the noise levels would cancel, down to 0


@dataclass(frozen=True)
@component
class SignalToNoise(PairWeight):
    """1/sigma_t^2 + 1/sigma_data^2: ECT's."""

    sigma_data: Positive = 0.5
    """Standard deviation of the data."""

    def __call__(self, t: Tensor, s: Tensor) -> Tensor:
        return noise_level(t) ** -2 + self.sigma_data**-2

"""Which two times discrete-time consistency compares, t < s, and how much a pair weighs: iCT's and ECT's schedules.

Both papers think in the noise level sigma = (1 - t)/t, where data is sigma = 0. A schedule is a frozen component that
knows its place in training as ``seen``; ``at(images_seen)`` gives the same schedule at another place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


def noise_level(t: Tensor) -> Tensor:
    """sigma = (1 - t)/t; infinite at t = 0."""
    return (1 - t) / t


def time_at(sigma: Tensor) -> Tensor:
    """t = 1/(1 + sigma)."""
    return 1 / (1 + sigma)


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
        """t, s (n,) float64 with 0 < t < s <= 1, drawn from ``rng``."""
        ...


def _check_lognormal(name: str, std: float) -> None:
    if not std > 0:
        raise ValueError(f"{name}: std = {std}, expected a positive number")


@dataclass(frozen=True)
class DoublingSteps:
    """iCT (arXiv 2310.14189): neighbours on a grid of noise levels whose number of steps doubles during training.

    N = min(first * 2^floor(seen/K'), last) steps with K' = floor(images/(log2 floor(last/first) + 1)); N + 1 levels
    sigma_i = (sigma_min^(1/rho) + i/N (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho; step i is drawn with the mass that
    ln sigma ~ N(mean, std^2) has between its ends.

    sigma_min is subtracted from every level, so that the last is data itself: there f is the identity in this package,
    at sigma_min in the paper. The noisiest time is 1/(1 + sigma_max) = 0.012; a sampler asks at 0.
    """

    images: int
    """Length of the training run in images seen."""
    first: int = 10
    """Number of steps at the start of training."""
    last: int = 1280
    """Largest number of steps."""
    sigma_min: float = 0.002
    """Lowest noise level, above 0."""
    sigma_max: float = 80.0
    """Highest noise level."""
    rho: float = 7.0
    """Exponent of the spacing between noise levels."""
    mean: float = -1.1
    """Mean of ln sigma."""
    std: float = 2.0
    """Standard deviation of ln sigma."""
    seen: int = 0
    """Images seen so far; training sets it."""

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(f"DoublingSteps: first = {self.first}, last = {self.last}, expected 1 <= first <= last")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"DoublingSteps: sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}, expected 0 < min < max"
            )
        if not self.rho > 0:
            raise ValueError(f"DoublingSteps: rho = {self.rho}, expected a positive number")
        _check_lognormal("DoublingSteps", self.std)
        if self.stage < 1:
            raise ValueError(
                f"DoublingSteps: images = {self.images}, expected at least one for each of the numbers of steps from "
                f"{self.first} to {self.last}"
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
        return time_at(clean[step + 1]), time_at(clean[step])


@dataclass(frozen=True)
class ShrinkingGap:
    """ECT (arXiv 2406.14548): ln sigma ~ N(mean, std^2), and its partner at sigma (1 - n(sigma)/q^a), at least 0.

    n(sigma) = 1 + k sigmoid(-b sigma); a = 1 at the start of training and one more after every ``stage`` images, up to
    ``stages``. At first most partners are data itself, which is training of a denoiser; later they close in.
    The defaults are those of CIFAR-10; ImageNet has q = 4. Meant to start from a trained flow or diffusion network.
    """

    stage: int = 3_200_000
    """Images between two increases of the exponent a."""
    stages: int = 8
    """Largest exponent a."""
    q: float = 2.0
    """Base of the shrinking gap, above 1."""
    k: float = 8.0
    """Factor of the sigmoid in n(sigma); 0 or more."""
    b: float = 1.0
    """Slope of the sigmoid in n(sigma)."""
    mean: float = -1.1
    """Mean of ln sigma."""
    std: float = 2.0
    """Standard deviation of ln sigma."""
    seen: int = 0
    """Images seen so far; training sets it."""

    def __post_init__(self) -> None:
        if self.stage < 1 or self.stages < 1:
            raise ValueError(f"ShrinkingGap: stage = {self.stage}, stages = {self.stages}, expected at least 1 of both")
        if not self.q > 1:
            raise ValueError(f"ShrinkingGap: q = {self.q}, expected more than 1: the gap is to shrink")
        if not self.k >= 0:
            raise ValueError(f"ShrinkingGap: k = {self.k}, expected 0 or more")
        _check_lognormal("ShrinkingGap", self.std)

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
        gap = (1 + self.k * torch.sigmoid(-self.b * sigma)) / self.q**self.exponent
        return time_at(sigma), time_at(sigma * (1 - gap).clamp(min=0))


@runtime_checkable
class PairWeight(Protocol):
    """The weight of a pair of times, (B,) twice -> (B,)."""

    def __call__(self, t: Tensor, s: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class OverStep:
    """1/(sigma_t - sigma_s): iCT's."""

    def __call__(self, t: Tensor, s: Tensor) -> Tensor:
        return 1 / (noise_level(t) - noise_level(s))


@dataclass(frozen=True)
class SignalToNoise:
    """1/sigma_t^2 + 1/sigma_data^2: ECT's."""

    sigma_data: float = 0.5
    """Standard deviation of the data."""

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"SignalToNoise: sigma_data = {self.sigma_data}, expected a positive number")

    def __call__(self, t: Tensor, s: Tensor) -> Tensor:
        return noise_level(t) ** -2 + self.sigma_data**-2

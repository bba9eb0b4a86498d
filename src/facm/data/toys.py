"""Two-dimensional toy distributions, sampled by numpy. Samples are x_1 (B, 2) float32; unless stated otherwise the
distribution has mean 0 and variance 1 in each coordinate, which the n samples approximate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from facm.core.component import Finite, Range, Seed, component, refused
from facm.core.types import Data
from facm.data.in_memory import InMemory

Samples = Annotated[int, Range("[1, 16777216]")]
"""A number of samples that are drawn when the data set is opened."""
MOST_NUMBERS = 2**28
"""Numbers in all samples together."""
NotNegative = Annotated[float, Range("[0, 1e12]")]
"""A standard deviation, which may be 0."""


@dataclass(frozen=True)
@component
class Ring(Data):
    """Equal Gaussians around a circle; the label is the mode, counted counter-clockwise from angle 0.

    The mean is 0 with at least two modes, and the variances are equal with at least three."""

    modes: Annotated[int, Range("[1, 65536]")] = 8
    """Number of Gaussians, at least 1."""
    n: Samples = 8192
    """Number of samples, at least 1, all of which are in memory."""
    noise: NotNegative = 0.05
    """Standard deviation of each Gaussian relative to the circle's radius, 0 or more."""
    seed: Seed = 0
    """Seed of the samples, 0 or more."""

    def open(self) -> InMemory:
        labels = np.arange(self.n) % self.modes
        angle = 2 * math.pi * labels / self.modes
        x = np.stack([np.cos(angle), np.sin(angle)], 1) + self.noise * _normal(self.seed, self.n, 2)
        x /= math.sqrt(1 / 2 + self.noise**2)
        return InMemory(x.astype(np.float32), labels, self.modes, name="Ring")


@dataclass(frozen=True)
@component
class Moons(Data):
    """Two interleaving half circles; the label is the half circle."""

    n: Samples = 8192
    """Number of samples, at least 1, all of which are in memory."""
    noise: NotNegative = 0.05
    """Standard deviation of the noise relative to the circles' radius, 0 or more."""
    seed: Seed = 0
    """Seed of the samples, 0 or more."""

    def open(self) -> InMemory:
        rng = np.random.default_rng(self.seed)
        labels = np.arange(self.n) % 2
        angle = math.pi * rng.random(self.n)
        upper = np.stack([np.cos(angle), np.sin(angle)], 1)
        lower = np.stack([1 - np.cos(angle), 1 / 2 - np.sin(angle)], 1)
        x = np.where(labels[:, None] == 0, upper, lower) + self.noise * rng.standard_normal((self.n, 2))
        # Over a half circle E[sin] = 2 / pi and E[sin^2] = E[cos^2] = 1/2.
        mean = np.array([1 / 2, 1 / 4])
        variance = np.array([3 / 4, 9 / 16 - 1 / math.pi]) + self.noise**2
        return InMemory(((x - mean) / np.sqrt(variance)).astype(np.float32), labels, 2, name="Moons")


@dataclass(frozen=True)
@component
class Checkerboard(Data):
    """The uniform distribution over the dark squares of a board on [-sqrt 3, sqrt 3]^2 whose lower left square is dark.

    There are no labels."""

    cells: Annotated[int, Range("[2, 65536]")] = 4
    """Number of squares on each side of the board, an even number."""
    n: Samples = 8192
    """Number of samples, at least 1, all of which are in memory."""
    seed: Seed = 0
    """Seed of the samples, 0 or more."""

    def __post_init__(self) -> None:
        if self.cells % 2:
            raise refused(self, "cells", "an even number")

    def open(self) -> InMemory:
        rng = np.random.default_rng(self.seed)
        column = rng.integers(self.cells, size=self.n)
        row = 2 * rng.integers(self.cells // 2, size=self.n) + column % 2
        within = rng.random((self.n, 2))
        x = math.sqrt(3) * (2 * (np.stack([column, row], 1) + within) / self.cells - 1)
        return InMemory(x.astype(np.float32), name="Checkerboard")


@dataclass(frozen=True)
@component
class Gaussian(Data):
    """N(mean, std^2) in each of ``dim`` independent coordinates, not standardised: x_1 (B, dim).

    Its velocities are known in closed form. There are no labels."""

    mean: Finite = 0.0
    """Mean of each coordinate."""
    std: NotNegative = 1.0
    """Standard deviation of each coordinate, 0 or more."""
    dim: Annotated[int, Range("[1, 65536]")] = 2
    """Number of coordinates, at least 1."""
    n: Samples = 8192
    """Number of samples, at least 1, all of which are in memory."""
    seed: Seed = 0
    """Seed of the samples, 0 or more."""

    def __post_init__(self) -> None:
        if self.n * self.dim > MOST_NUMBERS:
            raise refused(self, "n", f"at most {MOST_NUMBERS} numbers with dim = {self.dim}")

    def open(self) -> InMemory:
        x = self.mean + self.std * _normal(self.seed, self.n, self.dim)
        return InMemory(x.astype(np.float32), name="Gaussian")


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)

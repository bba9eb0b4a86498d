"""Mean and standard deviation of each channel, from sums over shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the values of each channel.

    count: Number of values of a channel.
    sum: Sum of the values, (C,) float64.
    squares: Sum of their squares, (C,) float64.
    """

    count: int
    sum: np.ndarray
    squares: np.ndarray

    @staticmethod
    def of_all(parts: Sequence[Moments]) -> Moments:
        """The moments of several parts together, which must have the same number of channels."""
        return Moments(
            sum(part.count for part in parts),
            np.sum([part.sum for part in parts], 0),
            np.sum([part.squares for part in parts], 0),
        )

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel, (C,)."""
        return self.sum / self.count

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each channel, (C,), of the values themselves: divided by ``count``."""
        return np.sqrt(np.maximum(self.squares / self.count - self.mean**2, 0))


def sums(x: Tensor) -> Moments:
    """The moments of latents (N, C, h, w) in float64, one sample at a time, to spare a float64 copy of the shard."""
    total, squares = np.zeros((2, x.shape[1]))
    for sample in x.numpy().reshape(*x.shape[:2], -1):
        values = sample.astype(np.float64)
        total += values.sum(1)
        squares += (values * values).sum(1)
    return Moments(x.numel() // x.shape[1], total, squares)

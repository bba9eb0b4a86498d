"""Mean and standard deviation of each channel, from sums that are added up shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """count: values in a channel. sum, squares: (C,) float64, of them and of their squares."""

    count: int
    sum: np.ndarray
    squares: np.ndarray

    @staticmethod
    def of_all(parts: Sequence[Moments]) -> Moments:
        """The moments of several parts together, which have equally many channels."""
        return Moments(
            sum(part.count for part in parts),
            np.sum([part.sum for part in parts], 0),
            np.sum([part.squares for part in parts], 0),
        )

    @property
    def mean(self) -> np.ndarray:
        return self.sum / self.count

    @property
    def std(self) -> np.ndarray:
        """Of the values themselves: divided by their number."""
        return np.sqrt(np.maximum(self.squares / self.count - self.mean**2, 0))


def sums(x: Tensor) -> Moments:
    """The moments of latents (N, C, h, w), in float64, one sample at a time: a shard in float64 is twice itself."""
    total, squares = np.zeros((2, x.shape[1]))
    for sample in x.numpy().reshape(*x.shape[:2], -1):
        values = sample.astype(np.float64)
        total += values.sum(1)
        squares += (values * values).sum(1)
    return Moments(x.numel() // x.shape[1], total, squares)

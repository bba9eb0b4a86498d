"""Networks of other people: an exact flow in any convention, and a linear one for samples of any shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Exact(nn.Module):
    """E[x_1 - x_0 | x_t] for x_1 = 2, with time scaled, and from data to noise if ``noise_last``."""

    def __init__(self, scale: float, noise_last: bool) -> None:
        super().__init__()
        self.scale, self.noise_last, self.unused = scale, noise_last, nn.Parameter(torch.zeros(()))

    @staticmethod
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (2 - x) / (1 - t.reshape(-1, *[1] * (x.ndim - 1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t / self.scale
        return -self.velocity(x, 1 - t) if self.noise_last else self.velocity(x, t)


class Any(nn.Module):
    """A linear map of all numbers of a sample and its time."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(shape) + 1, math.prod(shape))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(torch.cat([x.flatten(1), t[:, None]], 1)).reshape(x.shape)

"""alpha(t) and beta(t) of the shortcut loss: the six rows of Table 4 are all pairs of these.

Each is a function of t (B,) -> (B,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from facm.core.component import Positive, component


@runtime_checkable
class Weight(Protocol):
    """A weighting function of time, t (B,) -> (B,)."""

    def __call__(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class One(Weight):
    """1: as alpha it switches the interpolation of the target off, as beta the weighting."""

    def __call__(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
@component
class OneMinusPower(Weight):
    """1 - t^p. alpha(t) = 1 - t^0.5 is the paper's best (Table 4)."""

    p: Positive = 0.5
    """Exponent p, above 0."""

    def __call__(self, t: Tensor) -> Tensor:
        return 1 - t**self.p


@dataclass(frozen=True)
class Cosine(Weight):
    """cos(pi t / 2), the paper's beta (Table 4)."""

    def __call__(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t)

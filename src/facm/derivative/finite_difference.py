"""The derivative without forward mode, for networks that break it and as a check of the other strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from facm.core.component import Range, component
from facm.derivative.base import Derivative, Function, Pair
from facm.derivative.inside_forward import inside_wrapper


@dataclass(frozen=True)
@component
class FiniteDifference(Derivative):
    """dF ~ (F(x + h v, t + h) - F(x - h v, t - h)) / 2h, which needs no forward mode.

    The error is O(h^2) plus rounding / h: about 2e-4 relative at h = 5e-3 in fp32 for networks that embed t in [0, 2]
    unscaled; bf16 is too coarse. Near the ends F is evaluated at times up to h outside [0, 1].
    """

    h: Annotated[float, Range("[1e-12, 1]")] = 5e-3
    """Step in t, above 0 and at most 1; choose 1e-5 for a network whose time is scaled by 1000."""

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        return inside_wrapper(self._pair, function, primals, tangents)

    def _pair(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        (x, t), (v, dt) = primals, tangents
        with torch.no_grad():
            forward = function(x + self.h * v, t + self.h * dt)
            backward = function(x - self.h * v, t - self.h * dt)
        return function(x, t), (forward - backward) / (2 * self.h)

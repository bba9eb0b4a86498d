"""Phases: the times in which a student jumps, each to the end of its own interval.

With bounds 0 = b_0 < b_1 < ... < b_K = 1, the average velocity F at t in [b_{k-1}, b_k) leads to t_end = b_k:

    f(x_t, t) = x_t + (t_end - t) F(x_t, t),      f(x, t_end) = x,      F = v + (t_end - t) dF/dt

which is plain FACM on the path from x_0 to x_{t_end}. One phase is the paper's student. Several in one network are a
phased student (Wang et al., 2024, arXiv 2405.18407), and one network for each phase is what a pair of experts learns,
such as that of Wan 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from facm.core.component import Fraction, Range, component, refused
from facm.flow.times import Squeezed, TimeDistribution

Bounds = Annotated[tuple[Fraction, ...], Range("[2, 64]")]
"""Where phases begin and end: at least two times in [0, 1] that increase."""
WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
@component
class Phases:
    """The times that a network is trained at, from the first bound to the last, and where it jumps from each."""

    bounds: Bounds = WHOLE
    """Where phases begin and end, increasing in [0, 1]; (0, 1): one jump to data, from all times."""

    def __post_init__(self) -> None:
        if any(a >= b for a, b in pairwise(self.bounds)):
            raise refused(self, "bounds", "times that increase strictly, such as (0, 0.125, 1)")

    def times(self, time: TimeDistribution) -> TimeDistribution:
        """``time``, squeezed into the range of the phases; no further random numbers are drawn."""
        low, high = self.bounds[0], self.bounds[-1]
        return time if (low, high) == WHOLE else Squeezed(time, low, high)

    def progress(self, t: Tensor) -> Tensor:
        """(t - b) / (t_end - b) (B,) where t's phase begins at b: the share of it that has passed, which the weights
        alpha and beta are functions of, as they are of t in the paper's one phase."""
        begin = torch.tensor(self.bounds[:-1], dtype=t.dtype, device=t.device)[self._phase(t)]
        return (t - begin) / (self.end(t) - begin)

    def end(self, t: Tensor) -> Tensor:
        """t_end (B,) for t (B,): the first bound after t, or the last one. A bound is in the phase that it begins."""
        return torch.tensor(self.bounds[1:], dtype=t.dtype, device=t.device)[self._phase(t)]

    def _phase(self, t: Tensor) -> Tensor:
        """(B,) int64: the number of the phase that t lies in."""
        return torch.searchsorted(
            torch.tensor(self.bounds[1:-1], dtype=t.dtype, device=t.device), t.contiguous(), right=True
        )

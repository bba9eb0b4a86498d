"""Two experts that share the noise levels: which of them a time belongs to, and guidance with a scale for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from facm.core.component import Fraction, Range, component
from facm.core.tensors import expand
from facm.core.types import Scale
from facm.flow.guidance import Guidance

Boundary = Annotated[float, Range("(0, 1)")]
"""The lowest noise level sigma = 1 - t of the expert of high noise."""
AVOIDED = 5e-4
"""How far above the noise level of a step a boundary lies that gives this step to the expert of low noise."""


def of_high_noise(t: Tensor, boundary: float) -> Tensor:
    """(B,) bool: the times t (B,) in [0, 2] of the expert of high noise, whose sigma is at least ``boundary``.

    Compared in thousandths, as pipelines do, so that a step that is exactly on the boundary has the same expert here. A
    time above 1 is FACM's c_FM = 2 - t and belongs where t does.
    """
    return 1000 * (1 - t).abs() >= 1000 * boundary


def just_above(boundary: float) -> float:
    """A boundary that gives a step at ``boundary`` itself to the expert of low noise, as a pair of students has it."""
    return boundary + min(AVOIDED, (1 - boundary) / 2)


@dataclass(frozen=True)
@component
class TwoScales(Guidance):
    """Guidance of a teacher of two experts: each has its own w. ``scale`` is that of high noise, sigma >= boundary."""

    scale: Annotated[float, Range("[1, 1e12]")] = 4.0
    """Guidance scale w >= 1 of the expert of high noise; 1 is no guidance."""
    low: Fraction = 0.0
    """Earliest time t in [0, 1] at which guidance is active."""
    high: Fraction = 1.0
    """Latest time t in [0, 1] at which guidance is active."""
    scale_2: Annotated[float, Range("[1, 1e12]")] = 3.0
    """Guidance scale w >= 1 of the expert of low noise; 1 is no guidance."""
    boundary: Boundary = 0.875
    """Noise level sigma = 1 - t from which on the expert of high noise is asked, within (0, 1)."""

    @property
    def strongest(self) -> float:
        return max(self.scale, self.scale_2)

    def at(self, t: Tensor, like: Tensor) -> Scale:
        w = t.new_full(t.shape, self.scale_2)
        return expand(torch.where(of_high_noise(t, self.boundary), self.scale, w), like)

"""The random part of a step: noise, times, dropped labels (Alg. 1, line 1), all from one generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facm.conditions import Condition
from facm.times import TimeDistribution
from facm.types import Batch


@dataclass(frozen=True)
class Draws:
    """x_0 like x_1, t (B,), the condition after dropout, and which samples lost theirs: (B,) bool or None."""

    x_0: Tensor
    t: Tensor
    cond: Tensor | None
    dropped: Tensor | None


def draw(
    batch: Batch, time: TimeDistribution, condition: Condition, label_dropout: float, rng: torch.Generator
) -> Draws:
    """One step's draws for ``batch``, on the generator's device."""
    x_0 = torch.randn(batch.x_1.shape, generator=rng, device=rng.device, dtype=batch.x_1.dtype)
    t = time.sample(len(x_0), rng).to(x_0.dtype)
    cond, dropped = batch.cond, None
    if label_dropout:
        cond, dropped = condition.drop(cond, label_dropout, rng)
    return Draws(x_0, t, cond, dropped)

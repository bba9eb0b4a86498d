"""The random part of a step: noise, times, dropped labels (Alg. 1, line 1), all from one generator.

Drawn for all samples of the step, of which a batch may be a part: the numbers do not depend on how many ranks or
micro-batches share a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facm.core.types import Batch
from facm.flow.conditions import Condition
from facm.flow.times import TimeDistribution


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
    x_0 = noise(batch, rng)
    t = rows(time.sample(size(batch), rng), batch).to(x_0.dtype)
    if not label_dropout:
        return Draws(x_0, t, batch.cond, None)
    dropped = chosen(batch, label_dropout, rng)
    return Draws(x_0, t, condition.drop(batch.cond, dropped), dropped)


def noise(batch: Batch, rng: torch.Generator) -> Tensor:
    """Standard normals like x_1."""
    shape = (size(batch), *batch.x_1.shape[1:])
    return rows(torch.randn(shape, generator=rng, device=rng.device, dtype=batch.x_1.dtype), batch)


def chosen(batch: Batch, probability: float, rng: torch.Generator) -> Tensor:
    """(B,) bool: each sample with ``probability``."""
    return rows(torch.rand(size(batch), generator=rng, device=rng.device) < probability, batch)


def size(batch: Batch) -> int:
    """How many samples the step has, of which ``batch`` may be a part."""
    return len(batch.x_1) if batch.of is None else batch.of


def rows(whole: Tensor, batch: Batch) -> Tensor:
    """The batch's rows of something drawn for the whole step."""
    return whole[batch.start : batch.start + len(batch.x_1)]


@dataclass(frozen=True, eq=False)
class Point:
    """Where on the flow a velocity is asked for: x_1, x_0, x_t (B, ...), t (B,), cond (B,) and which samples had theirs
    dropped, (B,) bool or None."""

    x_1: Tensor
    x_0: Tensor
    x_t: Tensor
    t: Tensor
    cond: Tensor | None = None
    dropped: Tensor | None = None

"""A point between noise and data and all that was drawn for it (Alg. 1, lines 1 and 3), from one generator.

Everything random is drawn for all samples of a step, of which a batch may be a part: the numbers do not depend on how
many ranks or micro-batches share the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facm.core.cond import Cond
from facm.core.objective import Condition
from facm.core.types import Batch
from facm.flow.paths import interpolate, velocity
from facm.flow.times import TimeDistribution


@dataclass(frozen=True, eq=False)
class Interpolant:
    """x_t = (1 - t) x_0 + t x_1 with its ends and its condition.

    x_0: (B, ...) noise.
    x_1: (B, ...) data.
    t: (B,) times in [0, 1]; 0 is noise.
    x_t: (B, ...) the point between them.
    cond: the condition (B, ...) after dropout, or None.
    dropped: (B,) bool, the samples that lost their condition; None where none did.
    """

    x_0: Tensor
    x_1: Tensor
    t: Tensor
    x_t: Tensor
    cond: Cond = None
    dropped: Tensor | None = None

    @property
    def v(self) -> Tensor:
        """x_1 - x_0 (B, ...), the conditional velocity."""
        return velocity(self.x_0, self.x_1)

    def __len__(self) -> int:
        return len(self.x_1)

    @staticmethod
    def between(x_0: Tensor, x_1: Tensor, t: Tensor, cond: Cond = None, dropped: Tensor | None = None) -> Interpolant:
        """The point at ``t``. Raises ValueError on unequal shapes, or times that are not (B,) in [0, 1]."""
        return Interpolant(x_0, x_1, t, interpolate(x_0, x_1, t), cond, dropped)

    @staticmethod
    def draw(
        batch: Batch, time: TimeDistribution, condition: Condition, label_dropout: float, rng: torch.Generator
    ) -> Interpolant:
        """Noise, times and dropped labels for ``batch``, in this order, on the generator's device."""
        x_0 = draw_noise(batch, rng)
        t = rows(time.sample(step_size(batch), rng), batch).to(x_0.dtype)
        return Interpolant.at(x_0, batch, t, condition, label_dropout, rng)

    @staticmethod
    def at(
        x_0: Tensor, batch: Batch, t: Tensor, condition: Condition, label_dropout: float, rng: torch.Generator
    ) -> Interpolant:
        """At given noise and times, with dropped labels drawn for ``batch``."""
        cond, dropped = drop_labels(batch, condition, label_dropout, rng)
        return Interpolant.between(x_0, batch.x_1, t, cond, dropped)


def draw_noise(batch: Batch, rng: torch.Generator) -> Tensor:
    """Standard normals like x_1."""
    shape = (step_size(batch), *batch.x_1.shape[1:])
    return rows(torch.randn(shape, generator=rng, device=rng.device, dtype=batch.x_1.dtype), batch)


def draw_subset(batch: Batch, probability: float, rng: torch.Generator) -> Tensor:
    """(B,) bool: each sample with ``probability``."""
    return rows(torch.rand(step_size(batch), generator=rng, device=rng.device) < probability, batch)


def drop_labels(
    batch: Batch, condition: Condition, label_dropout: float, rng: torch.Generator
) -> tuple[Cond, Tensor | None]:
    """The condition with the null for a fraction of the samples, and which ones: (B,) bool, None for a fraction of 0,
    which draws nothing."""
    if not label_dropout:
        return batch.cond, None
    dropped = draw_subset(batch, label_dropout, rng)
    return condition.drop(batch.cond, dropped), dropped


def step_size(batch: Batch) -> int:
    """The number of samples in the step, of which ``batch`` may be a part."""
    return len(batch.x_1) if batch.of is None else batch.of


def rows(whole: Tensor, batch: Batch) -> Tensor:
    """The rows of ``batch`` in a tensor that was drawn for the whole step."""
    return whole[batch.start : batch.start + len(batch.x_1)]

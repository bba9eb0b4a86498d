"""Samples from a trained network: method, guidance and labels in, images out.

Every sample has its own noise, a function of (seed, its index): the result does not depend on how samples are batched,
and two methods with one seed start from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from facm.core.component import shown
from facm.core.cond import Cond, mapped
from facm.core.objective import Condition
from facm.core.rng import derive
from facm.flow.conditions import Labels
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.sampling.methods import Method
from facm.sampling.source import Source

MOST_SAMPLES = 100_000_000
"""A hundred times what ImageNet has."""


def noise(seed: int, indices: Sequence[int], draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normals (len(indices), *shape) float32: row k is a function of (seed, indices[k], draw) alone."""
    rng = torch.Generator()
    return torch.stack([torch.randn(shape, generator=rng.manual_seed(derive(seed, i, draw))) for i in indices])


def balanced_labels(condition: Condition, indices: Sequence[int]) -> Tensor | None:
    """Sample i has label i mod classes; None for an unconditional network."""
    if not isinstance(condition, Labels):
        return None
    return torch.tensor([i % condition.classes for i in indices])


def random_labels(condition: Condition, indices: Sequence[int], seed: int) -> Tensor | None:
    """Uniform labels, each a function of (seed, its index) and unrelated to the sample's noise; None for an
    unconditional network."""
    if not isinstance(condition, Labels):
        return None
    return torch.tensor([derive(seed, i, 0, 1) % condition.classes for i in indices])


def sample(
    source: Source,
    method: Method,
    indices: Sequence[int],
    cond: Cond,
    seed: int = 0,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """Samples ``indices`` of seed ``seed``: (len(indices), *shape) float32 on the source's device.

    cond: labels (len(indices),), another condition of as many samples, or None.
    guidance: none for a student that was distilled with guidance.
    Raises ValueError on labels out of range or guidance without a null condition. What the network has learned is not
    checked here: see :meth:`Method.check`.
    """
    source.condition.check(cond, len(indices))
    cond = mapped(lambda value: value.to(source.device), cond)
    x_0 = noise(seed, indices, 0, source.shape).to(source.device)
    return method.solve(source.fields(cond, guidance), x_0, partial(_fresh_noise, source, seed, indices))


def sample_balanced(source: Source, method: Method, n: int, seed: int = 0) -> Tensor:
    """The first n samples of ``seed`` with balanced labels and without guidance, in one batch: for pictures that are
    compared, since every network and method starts from the same noise."""
    return sample(source, method, range(n), balanced_labels(source.condition, range(n)), seed)


def _fresh_noise(source: Source, seed: int, indices: Sequence[int], draw: int) -> Tensor:
    return noise(seed, indices, draw, source.shape).to(source.device)


def blocks(n: int, size: int = 256) -> list[range]:
    """The indices of n samples, in the blocks they are made in, on however many ranks. Raises ValueError unless n is
    within [1, MOST_SAMPLES]."""
    if n < 1:
        raise ValueError(f"n = {n}, expected at least one sample")
    if n > MOST_SAMPLES:
        raise ValueError(f"n = {shown(n)}, expected at most {MOST_SAMPLES} samples")
    return [range(start, min(start + size, n)) for start in range(0, n, size)]

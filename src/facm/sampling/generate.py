"""Samples from a trained network: method, guidance and labels in, images out.

Every sample has its own noise, a function of (seed, its index): the result does not depend on how samples are batched,
and two methods with one seed start from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from facm.core.objective import Condition, Task
from facm.core.rng import derive
from facm.core.types import VelocityField
from facm.flow.conditions import Labels
from facm.flow.guidance import NO_GUIDANCE, Guidance, velocity_field
from facm.flow.time_conditioning import native
from facm.sampling import solvers as samplers
from facm.sampling.methods import Consistency, DPMSolverPP, EDMHeun, Euler, Jumps, Method


@dataclass(frozen=True)
class Source:
    """A network and how it is asked: the task it was trained with, its condition, and the shape of one sample."""

    network: Any
    task: Task
    condition: Condition
    shape: tuple[int, ...]
    device: torch.device


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
    cond: Tensor | None,
    seed: int = 0,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """Samples ``indices`` of seed ``seed``: (len(indices), *shape) float32 on the source's device.

    cond: (len(indices),) labels or None. A student distilled with guidance baked in is sampled without guidance.
    Raises ValueError on labels out of range or guidance without a null condition.
    """
    source.condition.check(cond, len(indices))
    cond = None if cond is None else cond.to(source.device)
    x_0 = noise(seed, indices, 0, source.shape).to(source.device)

    def field(at: Any) -> VelocityField:
        return velocity_field(source.network, at, cond, source.condition, guidance)

    if isinstance(method, Consistency):
        fresh = partial(_fresh_noise, source, seed, indices)
        return samplers.consistency(field(source.task.shortcut), x_0, method.schedule(), fresh)
    if isinstance(method, Jumps):
        if not getattr(source.network, "auxiliary_time", False):
            raise ValueError(
                f"{method} asks a network that knows a second time r, and {type(source.network).__name__} has none"
            )
        return samplers.jumps(lambda x, t, r: field(lambda t: {"t": t, "r": r})(x, t), x_0, method.schedule())
    at = source.task.anchor if method.head == "anchor" else partial(native, source.network)
    if isinstance(method, Euler):
        return samplers.euler(field(at), x_0, samplers.shifted_times(method.nfe, method.shift))
    if isinstance(method, DPMSolverPP):
        return samplers.dpm_solver_pp(field(at), x_0, samplers.shifted_times(method.nfe, method.shift))
    if isinstance(method, EDMHeun):
        return samplers.edm_heun(field(at), x_0, method.sigmas())
    return samplers.heun(field(at), x_0, samplers.shifted_times((method.nfe + 1) // 2, method.shift))


def _fresh_noise(source: Source, seed: int, indices: Sequence[int], draw: int) -> Tensor:
    return noise(seed, indices, draw, source.shape).to(source.device)


def blocks(n: int, size: int = 256) -> list[range]:
    """The indices of n samples, in the blocks they are made in, on however many ranks. Raises ValueError for n < 1."""
    if n < 1:
        raise ValueError(f"n = {n}, expected at least one sample")
    return [range(start, min(start + size, n)) for start in range(0, n, size)]

"""Samples from a trained network: method, guidance and labels in, images out.

Every sample has its own noise, a function of (seed, its index): the result does not depend on how samples are batched,
and two methods with one seed start from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from facm.core.rng import derive
from facm.core.types import VelocityField
from facm.flow.conditions import Condition, Labels
from facm.flow.guidance import NO_GUIDANCE, Guidance, velocity_field
from facm.flow.time_conditioning import Task, native
from facm.sampling import solvers as samplers


@dataclass(frozen=True)
class Consistency:
    """Multi-step consistency sampling on the shortcut head; nfe network evaluations.

    times: a schedule set by hand (nfe of them, from 0); else the uniform one, shifted by ``shift``.
    """

    nfe: int = 1
    shift: float = 1.0
    times: tuple[float, ...] | None = None

    def schedule(self) -> list[float]:
        return _schedule(self.nfe, self.shift, self.times)


@dataclass(frozen=True)
class Jumps:
    """From time to time by average velocities, on a network told both times (MeanFlow, Shortcut models, IMM); nfe
    evaluations. times: as for Consistency."""

    nfe: int = 1
    shift: float = 1.0
    times: tuple[float, ...] | None = None

    def schedule(self) -> list[float]:
        return _schedule(self.nfe, self.shift, self.times)


@dataclass(frozen=True)
class Euler:
    """Euler on an instantaneous velocity; nfe evaluations.

    head: "native" for a teacher (c = t), "anchor" for a FACM student's flow (c_FM), which is never its shortcut head.
    """

    nfe: int = 32
    head: Literal["native", "anchor"] = "native"
    shift: float = 1.0


@dataclass(frozen=True)
class Heun:
    """Heun with a last Euler step; nfe = 2 N - 1 evaluations, so nfe is odd."""

    nfe: int = 31
    head: Literal["native", "anchor"] = "native"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.nfe % 2 == 0:
            raise ValueError(f"nfe = {self.nfe} with Heun, expected an odd number: N steps spend 2 N - 1 evaluations")


@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++(2M) on an instantaneous velocity; nfe evaluations."""

    nfe: int = 20
    head: Literal["native", "anchor"] = "native"
    shift: float = 1.0


@dataclass(frozen=True)
class EDMHeun:
    """Heun in the noise level on EDM's schedule, from t = 1/(1 + sigma_max) on; nfe = 2 N - 1 evaluations."""

    nfe: int = 35
    head: Literal["native", "anchor"] = "native"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.nfe % 2 == 0:
            raise ValueError(
                f"nfe = {self.nfe} with EDMHeun, expected an odd number: N steps spend 2 N - 1 evaluations"
            )

    def sigmas(self) -> list[float]:
        return samplers.edm_sigmas((self.nfe + 1) // 2, self.sigma_min, self.sigma_max, self.rho)


Method = Consistency | Jumps | Euler | Heun | DPMSolverPP | EDMHeun


def _schedule(nfe: int, shift: float, times: tuple[float, ...] | None) -> list[float]:
    if times is None:
        return samplers.shifted_times(nfe, shift)
    samplers.check_times(times)
    if len(times) != nfe:
        raise ValueError(f"times = {times} for nfe = {nfe}, expected {nfe} times")
    return list(times)


def check_method(objective: Any, method: Method) -> None:
    """Raise ValueError where the method asks for what the objective never trained: average velocities to the end
    (``learns_shortcut``) or to any time (``learns_jumps``), the velocity (``learns_flow = False``), or more or other
    steps than its ``check_nfe`` allows."""
    name = type(objective).__name__
    if isinstance(method, Jumps) and not getattr(objective, "learns_jumps", False):
        raise ValueError(f"{method} asks for average velocities to any time, which {name} does not train; try Euler")
    if isinstance(method, Consistency) and not getattr(objective, "learns_shortcut", False):
        raise ValueError(f"{method} asks for average velocities from any time to the end, which {name} does not train")
    if not isinstance(method, Consistency | Jumps) and not getattr(objective, "learns_flow", True):
        raise ValueError(f"{method} follows the flow's velocity, which {name} does not train; expected Consistency")
    check = getattr(objective, "check_nfe", None)
    if check is not None and isinstance(method, Consistency | Jumps):
        check(method.nfe)


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

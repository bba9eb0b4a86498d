"""Sampling methods: the settings of a solver, what it needs a network to have learned, and the solving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from facm.core.objective import NetworkInterface
from facm.sampling import solvers
from facm.sampling.source import Head, VelocityFields

FreshNoise = Callable[[int], Tensor]
"""i = 1, 2, ... -> the i-th draw of noise after the initial one, (B, ...)."""


class Method(Protocol):
    """How samples are made of noise: a frozen dataclass of settings, recorded with every row of measured numbers.

    A sampler of your own is one more such class, at the top level of its file.
    """

    @property
    def nfe(self) -> int:
        """Network evaluations a sample, not counting the null of guidance."""
        ...

    def check(self, interface: NetworkInterface) -> None:
        """Raise ValueError where the network has not learned what the method needs."""
        ...

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        """From noise x_0 (B, ...) to samples of the same shape, type and device."""
        ...


@dataclass(frozen=True)
class Consistency:
    """Multi-step consistency sampling on the shortcut head.

    nfe: network evaluations.
    shift: of the uniform schedule; above 1 spends more steps near data.
    times: the schedule itself, nfe times that start at 0 and increase; None: the uniform one, shifted.
    """

    nfe: int = 1
    shift: float = 1.0
    times: tuple[float, ...] | None = None

    def schedule(self) -> list[float]:
        return _schedule(self.nfe, self.shift, self.times)

    def check(self, interface: NetworkInterface) -> None:
        if not interface.learns_shortcut:
            raise ValueError(
                f"{self} needs average velocities from any time to the end, which the network has not learned"
            )
        interface.check_nfe(self.nfe)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.consistency(fields.shortcut(), x_0, self.schedule(), fresh_noise)


@dataclass(frozen=True)
class Jumps:
    """From time to time by average velocities, with a network that takes both times (MeanFlow, Shortcut models, IMM).

    nfe: network evaluations.
    shift: of the uniform schedule; above 1 spends more steps near data.
    times: the schedule itself, nfe times that start at 0 and increase; None: the uniform one, shifted.
    """

    nfe: int = 1
    shift: float = 1.0
    times: tuple[float, ...] | None = None

    def schedule(self) -> list[float]:
        return _schedule(self.nfe, self.shift, self.times)

    def check(self, interface: NetworkInterface) -> None:
        if not interface.learns_jumps:
            raise ValueError(
                f"{self} needs average velocities to any time, which the network has not learned; try Euler"
            )
        interface.check_nfe(self.nfe)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.jumps(fields.average_velocity(), x_0, self.schedule())


@dataclass(frozen=True)
class Euler:
    """Euler's method on an instantaneous velocity.

    nfe: network evaluations.
    head: "native" for a teacher (c = t), "anchor" for a FACM student's flow (c_FM), which is never its shortcut head.
    shift: of the uniform schedule; above 1 spends more steps near data.
    """

    nfe: int = 32
    head: Head = "native"
    shift: float = 1.0

    def check(self, interface: NetworkInterface) -> None:
        _check_flow(self, interface)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.euler(fields.velocity(self.head), x_0, solvers.shifted_times(self.nfe, self.shift))


@dataclass(frozen=True)
class Heun:
    """Heun's method with a last Euler step.

    nfe: network evaluations, 2 N - 1 for N steps, so an odd number.
    head: as for Euler.
    shift: of the uniform schedule; above 1 spends more steps near data.
    """

    nfe: int = 31
    head: Head = "native"
    shift: float = 1.0

    def __post_init__(self) -> None:
        _check_odd(self)

    def check(self, interface: NetworkInterface) -> None:
        _check_flow(self, interface)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        times = solvers.shifted_times((self.nfe + 1) // 2, self.shift)
        return solvers.heun(fields.velocity(self.head), x_0, times)


@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++(2M) on an instantaneous velocity.

    nfe: network evaluations.
    head: as for Euler.
    shift: of the uniform schedule; above 1 spends more steps near data.
    """

    nfe: int = 20
    head: Head = "native"
    shift: float = 1.0

    def check(self, interface: NetworkInterface) -> None:
        _check_flow(self, interface)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.dpm_solver_pp(fields.velocity(self.head), x_0, solvers.shifted_times(self.nfe, self.shift))


@dataclass(frozen=True)
class EDMHeun:
    """Heun's method in the noise level on EDM's schedule, from t = 1/(1 + sigma_max) on.

    nfe: network evaluations, 2 N - 1 for N steps, so an odd number.
    head: as for Euler.
    sigma_min: the last noise level before 0, above 0.
    sigma_max: the first noise level.
    rho: larger values spend more steps at low noise levels, above 0.
    """

    nfe: int = 35
    head: Head = "native"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_odd(self)

    def sigmas(self) -> list[float]:
        return solvers.edm_sigmas((self.nfe + 1) // 2, self.sigma_min, self.sigma_max, self.rho)

    def check(self, interface: NetworkInterface) -> None:
        _check_flow(self, interface)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.edm_heun(fields.velocity(self.head), x_0, self.sigmas())


def default_method(interface: NetworkInterface, nfe: int) -> Method:
    """Consistency for a network that learned the shortcut to the end, jumps for one that only learned those between
    any two times, else Euler."""
    if interface.learns_shortcut:
        return Consistency(nfe)
    return Jumps(nfe) if interface.learns_jumps else Euler(nfe)


def _schedule(nfe: int, shift: float, times: tuple[float, ...] | None) -> list[float]:
    if times is None:
        return solvers.shifted_times(nfe, shift)
    solvers.check_times(times)
    if len(times) != nfe:
        raise ValueError(f"times = {times} for nfe = {nfe}, expected {nfe} times")
    return list(times)


def _check_odd(method: Heun | EDMHeun) -> None:
    if method.nfe % 2 == 0:
        raise ValueError(
            f"nfe = {method.nfe} with {type(method).__name__}, expected an odd number: N steps spend 2 N - 1 "
            "evaluations"
        )


def _check_flow(method: Method, interface: NetworkInterface) -> None:
    if not interface.learns_flow:
        raise ValueError(
            f"{method} follows the flow's velocity, which the network has not learned; expected Consistency"
        )

"""Sampling methods: settings of a solver, and which objectives train what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from facm.core.objective import Objective
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


def default_method(objective: Objective, nfe: int) -> Method:
    """Consistency for an objective that learns the shortcut to the end (it says ``learns_shortcut = True``), jumps for
    one that only learns those to any time (``learns_jumps = True``), else Euler."""
    if getattr(objective, "learns_shortcut", False):
        return Consistency(nfe)
    return Jumps(nfe) if getattr(objective, "learns_jumps", False) else Euler(nfe)

"""Sampling methods: the settings of a solver, what it needs a network to have learned, and the solving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Protocol, runtime_checkable

from torch import Tensor

from facm.core.component import Positive, Range, component, refused
from facm.core.objective import NetworkInterface
from facm.flow.phases import WHOLE, Bounds
from facm.sampling import solvers
from facm.sampling.moves import Move, evaluations, follow
from facm.sampling.source import Head, VelocityFields

Evaluations = Annotated[int, Range("[1, 10000]")]
"""Network evaluations of one sample; diffusion models were sampled with 1000."""
Shift = Annotated[float, Range("[1e-6, 1e6]")]
"""How much more steps are spent near data than near noise."""
Times = Annotated[tuple[Annotated[float, Range("[0, 1)")], ...], Range("[1, 10000]")]
"""A schedule: times that start at 0 and increase."""
FreshNoise = Callable[[int], Tensor]
"""i = 1, 2, ... -> the i-th draw of noise after the initial one, (B, ...)."""


@runtime_checkable
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
@component
class Consistency(Method):
    """Multi-step consistency sampling on the shortcut head.

    nfe: network evaluations.
    shift: of the uniform schedule; above 1 spends more steps near data.
    times: the schedule itself, nfe times that start at 0 and increase; None: the uniform one, shifted.
    """

    nfe: Evaluations = 1
    shift: Shift = 1.0
    times: Times | None = None

    def __post_init__(self) -> None:
        _check_schedule(self)

    def schedule(self) -> list[float]:
        return list(self.times or solvers.shifted_times(self.nfe, self.shift))

    def check(self, interface: NetworkInterface) -> None:
        if not interface.learns_shortcut:
            raise ValueError(
                f"{self} needs average velocities from any time to the end, which the network has not learned"
            )
        _check_jumps_to_1(self, interface)
        interface.check_nfe(self.nfe)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.consistency(fields.shortcut(), x_0, self.schedule(), fresh_noise)


@dataclass(frozen=True)
@component
class Phased(Method):
    """Consistency sampling of a student that jumps to the ends of phases, or of a pair of which each has learned one.

    nfe: network evaluations, at least one for each phase.
    bounds: where phases begin and end, from 0 to 1.
    steps: evaluations in each phase; None: as many in each, later ones have what is left over.
    shift: of the uniform schedule in each phase; above 1 spends more steps near its end.
    times: the schedule itself, nfe times that start at 0 and increase, all bounds but the last among them.
    """

    nfe: Evaluations = 2
    bounds: Bounds = (0.0, 0.5, 1.0)
    steps: Annotated[tuple[Evaluations, ...], Range("[1, 64]")] | None = None
    shift: Shift = 1.0
    times: Times | None = None

    def __post_init__(self) -> None:
        phases = len(self.bounds) - 1
        if self.bounds[0] != 0 or self.bounds[-1] != 1 or any(a >= b for a, b in pairwise(self.bounds)):
            raise refused(self, "bounds", "times that increase from 0 to 1")
        if self.nfe < phases:
            raise refused(self, "nfe", f"at least {phases}, one evaluation for each phase of {self.bounds}")
        if self.steps is not None and (len(self.steps) != phases or sum(self.steps) != self.nfe):
            raise refused(self, "steps", f"{phases} numbers, one for each phase, whose sum is nfe = {self.nfe}")
        _check_schedule(self)
        if self.times is not None and not set(self.bounds[:-1]) <= set(self.times):
            raise refused(self, "times", f"all times at which a phase begins among them: {self.bounds[:-1]}")

    def schedule(self) -> list[float]:
        if self.times is not None:
            return list(self.times)
        steps = self.steps or solvers.spread_over_phases(self.nfe, len(self.bounds) - 1)
        return solvers.phased_times(steps, self.bounds, self.shift)

    def check(self, interface: NetworkInterface) -> None:
        if not interface.learns_shortcut:
            raise ValueError(
                f"{self} needs average velocities to the ends of phases, which the network has not learned"
            )
        _check_whole(self, interface)
        if interface.bounds != self.bounds:
            raise ValueError(f"{self} has the bounds {self.bounds}, and the network has learned {interface.bounds}")
        interface.check_nfe(self.nfe)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.phased(fields.shortcut(), x_0, self.schedule(), self.bounds, fresh_noise)


@dataclass(frozen=True)
@component
class FlowThenJump(Method):
    """On both heads of a FACM student: along the anchor's flow by Heun's method, then by the shortcut to data.

    nfe: network evaluations. An odd number 2 k + 1 are k steps from noise and a jump. An even one 2 k + 2 are k steps
    and two jumps, with noise added again between them; 2 are consistency sampling.
    times: 0, where each step ends and, with an even nfe, how far back the noise between the jumps leads: increasing in
    [0, 1); None: a schedule that goes further with more steps.
    """

    nfe: Evaluations = 3
    times: Times | None = None

    def __post_init__(self) -> None:
        if self.times is None:
            return
        _check_increasing(self, self.times)
        if len(self.times) != len(self.moves) + 1:
            raise refused(self, "times", f"{len(self.moves) + 1} times from 0, for nfe = {self.nfe}")

    @property
    def moves(self) -> tuple[Move, ...]:
        """What leads from each time to the next; see :func:`facm.sampling.moves.follow`."""
        heun: Move = "heun"
        steps = (heun,) * ((self.nfe - 1) // 2)
        return steps if self.nfe % 2 else (*steps, "jump")

    def schedule(self) -> list[float]:
        return list(self.times or solvers.flow_then_jump_times(self.nfe))

    def check(self, interface: NetworkInterface) -> None:
        _check_heads(self, interface)
        _check_jumps_to_1(self, interface)
        interface.check_nfe(self.nfe)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        v, F = fields.velocity("anchor"), fields.shortcut()
        return follow(v, F, x_0, self.schedule(), self.moves, fresh_noise)


@dataclass(frozen=True)
@component
class Moves(Method):
    """On both heads of a FACM student, move by move, as ``facm schedule`` searches them; a last jump leads to data.

    moves: how each time leads to the next: "jump", renoised, or "euler", "adams" or "heun" along the anchor's flow.
    times: where they begin and end: one more than moves, from 0 on and increasing below 1.
    """

    moves: Annotated[tuple[Move, ...], Range("[0, 9999]")] = ("heun",)
    times: Times = (0.0, 0.6)

    def __post_init__(self) -> None:
        _check_increasing(self, self.times)
        if len(self.times) != len(self.moves) + 1:
            raise refused(self, "times", f"{len(self.moves) + 1} times, one more than moves")

    @property
    def nfe(self) -> int:
        return evaluations(self.moves)

    @property
    def uses_the_flow(self) -> bool:
        """Whether a move goes along the flow, so that the network must have learned it."""
        return any(move != "jump" for move in self.moves)

    def check(self, interface: NetworkInterface) -> None:
        _check_heads(self, interface, flow=self.uses_the_flow)
        _check_jumps_to_1(self, interface)
        interface.check_nfe(self.nfe)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        # A network without an anchor is not asked for it.
        v = fields.velocity("anchor") if self.uses_the_flow else fields.shortcut()
        return follow(v, fields.shortcut(), x_0, self.times, self.moves, fresh_noise)


@dataclass(frozen=True)
@component
class Jumps(Method):
    """From time to time by average velocities, with a network that takes both times (MeanFlow, Shortcut models, IMM).

    nfe: network evaluations.
    shift: of the uniform schedule; above 1 spends more steps near data.
    times: the schedule itself, nfe times that start at 0 and increase; None: the uniform one, shifted.
    """

    nfe: Evaluations = 1
    shift: Shift = 1.0
    times: Times | None = None

    def __post_init__(self) -> None:
        _check_schedule(self)

    def schedule(self) -> list[float]:
        return list(self.times or solvers.shifted_times(self.nfe, self.shift))

    def check(self, interface: NetworkInterface) -> None:
        if not interface.learns_jumps:
            raise ValueError(
                f"{self} needs average velocities to any time, which the network has not learned; try Euler"
            )
        interface.check_nfe(self.nfe)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.jumps(fields.average_velocity(), x_0, self.schedule())


@dataclass(frozen=True)
@component
class Euler(Method):
    """Euler's method on an instantaneous velocity.

    nfe: network evaluations.
    head: "native" for a teacher (c = t), "anchor" for a FACM student's flow (c_FM), which is never its shortcut head.
    shift: of the uniform schedule; above 1 spends more steps near data.
    """

    nfe: Evaluations = 32
    head: Head = "native"
    shift: Shift = 1.0

    def check(self, interface: NetworkInterface) -> None:
        _check_flow(self, interface)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.euler(fields.velocity(self.head), x_0, solvers.shifted_times(self.nfe, self.shift))


@dataclass(frozen=True)
@component
class Heun(Method):
    """Heun's method with a last Euler step.

    nfe: network evaluations, 2 N - 1 for N steps, so an odd number.
    head: as for Euler.
    shift: of the uniform schedule; above 1 spends more steps near data.
    """

    nfe: Evaluations = 31
    head: Head = "native"
    shift: Shift = 1.0

    def __post_init__(self) -> None:
        _check_odd(self)

    def check(self, interface: NetworkInterface) -> None:
        _check_flow(self, interface)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        times = solvers.shifted_times((self.nfe + 1) // 2, self.shift)
        return solvers.heun(fields.velocity(self.head), x_0, times)


@dataclass(frozen=True)
@component
class DPMSolverPP(Method):
    """DPM-Solver++(2M) on an instantaneous velocity.

    nfe: network evaluations.
    head: as for Euler.
    shift: of the uniform schedule; above 1 spends more steps near data.
    """

    nfe: Evaluations = 20
    head: Head = "native"
    shift: Shift = 1.0

    def check(self, interface: NetworkInterface) -> None:
        _check_flow(self, interface)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.dpm_solver_pp(fields.velocity(self.head), x_0, solvers.shifted_times(self.nfe, self.shift))


@dataclass(frozen=True)
@component
class EDMHeun(Method):
    """Heun's method in the noise level on EDM's schedule, from t = 1/(1 + sigma_max) on.

    nfe: network evaluations, 2 N - 1 for N steps, so an odd number.
    head: as for Euler.
    sigma_min: the last noise level before 0, above 0.
    sigma_max: the first noise level.
    rho: larger values spend more steps at low noise levels, above 0.
    """

    nfe: Evaluations = 35
    head: Head = "native"
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Annotated[float, Range("[1, 100]")] = 7.0

    def __post_init__(self) -> None:
        _check_odd(self)
        if not self.sigma_min < self.sigma_max:
            raise refused(self, "sigma_min", f"less than sigma_max = {self.sigma_max}")

    def sigmas(self) -> list[float]:
        return solvers.edm_sigmas((self.nfe + 1) // 2, self.sigma_min, self.sigma_max, self.rho)

    def check(self, interface: NetworkInterface) -> None:
        _check_flow(self, interface)

    def solve(self, fields: VelocityFields, x_0: Tensor, fresh_noise: FreshNoise) -> Tensor:
        return solvers.edm_heun(fields.velocity(self.head), x_0, self.sigmas())


def default_method(interface: NetworkInterface, nfe: int) -> Method:
    """Consistency for a network that learned the shortcut to the end, jumps for one that only learned those between
    any two times, else Euler. Raises ValueError for a network of a part of the times, or fewer steps than phases."""
    _check_whole(f"nfe = {nfe}", interface)
    if interface.learns_shortcut:
        return Consistency(nfe) if interface.bounds == WHOLE else Phased(nfe, interface.bounds)
    return Jumps(nfe) if interface.learns_jumps else Euler(nfe)


def _check_whole(method: Method | str, interface: NetworkInterface) -> None:
    """Raise ValueError for a network that was trained at a part of the times alone."""
    if not interface.knows_all_times:
        first, *_, last = interface.bounds
        raise ValueError(
            f"{method} needs all times from 0 to 1, and the network has learned those from {first:g} to {last:g}: it "
            "is one of several that are sampled together"
        )


def _check_heads(method: FlowThenJump | Moves, interface: NetworkInterface, flow: bool = True) -> None:
    """Raise ValueError for a network without a shortcut, or without the flow where the method follows it."""
    if not interface.learns_shortcut or (flow and not interface.learns_flow):
        raise ValueError(
            f"{method} needs {'a flow and ' * flow}average velocities to its end, as FACM trains them, and the network "
            f"has not learned {'both' if flow else 'them'}"
        )


def _check_jumps_to_1(method: Consistency | FlowThenJump | Moves, interface: NetworkInterface) -> None:
    """Raise ValueError for a network that has not learned all times, or jumps to the ends of phases."""
    _check_whole(method, interface)
    if interface.bounds != WHOLE:
        raise ValueError(
            f"{method} jumps to 1 from all times, and the network has learned to jump to the ends of its phases, "
            f"{interface.bounds}; expected Phased({max(method.nfe, len(interface.bounds) - 1)}, {interface.bounds})"
        )


def _check_increasing(method: Consistency | FlowThenJump | Jumps | Moves | Phased, times: tuple[float, ...]) -> None:
    if times[0] != 0 or any(a >= b for a, b in pairwise(times)):
        raise refused(method, "times", "times that start at 0 and increase strictly below 1")


def _check_schedule(method: Consistency | Jumps | Phased) -> None:
    times = method.times or (0.0,)
    _check_increasing(method, times)
    if method.times is not None and len(times) != method.nfe:
        raise refused(method, "times", f"{method.nfe} times, one for each evaluation")


def _check_odd(method: Heun | EDMHeun) -> None:
    if method.nfe % 2 == 0:
        raise refused(method, "nfe", f"an odd number: N steps of {type(method).__name__} spend 2 N - 1 evaluations")


def _check_flow(method: Method, interface: NetworkInterface) -> None:
    if not interface.learns_flow:
        raise ValueError(
            f"{method} follows the flow's velocity, which the network has not learned; expected Consistency"
        )
    _check_whole(method, interface)

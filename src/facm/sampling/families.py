"""Families of schedules that ``facm schedule`` chooses among, each with a few numbers in [0, 1] that place its times.

A family is jumps that are renoised, then steps along the flow by one solver, then jumps again; a last jump ends all of
them. Consistency sampling is the family of jumps alone, ``--sampler flow-jump`` is steps by Heun's method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from facm.sampling.methods import Moves
from facm.sampling.moves import EVALUATIONS, Move

LATEST = 0.98
"""No move leads beyond this time, from which a jump has little left to do."""
SHORT = 0.2
"""Where a short flow ends."""
DECIMALS = 3
"""Of times in a schedule: finer ones make no difference that samples could show."""


@dataclass(frozen=True)
class Family:
    """Which moves are made, in which order.

    before: jumps that are renoised at first.
    steps: steps along the flow after them.
    solver: the move that each of these steps is.
    after: jumps that are renoised after the flow.
    """

    before: int
    steps: int = 0
    solver: Move = "heun"
    after: int = 0

    @property
    def nfe(self) -> int:
        """Network evaluations of its schedules."""
        return self.before + self.steps * EVALUATIONS[self.solver] + self.after + 1

    @property
    def moves(self) -> tuple[Move, ...]:
        jump: Move = "jump"
        return (*(jump,) * self.before, *(self.solver,) * self.steps, *(jump,) * self.after)

    def starts(self) -> tuple[tuple[float, ...], ...]:
        """Where a search begins: at ordinary numbers, and where there is a flow, with a short one, for data whose flow
        bends early."""
        ordinary = self.start()
        if not self.steps:
            return (ordinary,)
        at = 1 if self.before else 0
        return (ordinary, (*ordinary[:at], SHORT, *ordinary[at + 1 :]))

    def start(self) -> tuple[float, ...]:
        """The numbers of an ordinary schedule: uniform times for jumps alone, else a flow from 0, or from 0.1
        after jumps, that with more evaluations goes further and has more of its steps near data, as flow-jump does."""
        if not self.steps:
            return (self.before / (self.before + 1), 0.5) if self.before else ()
        pairs = self.steps * EVALUATIONS[self.solver] / 2
        end, gathered = 1 - 0.5 ** min(pairs, 4.0), min(max(pairs, 1.0), 3.0)
        numbers = [0.1] * bool(self.before) + [end]
        return (*numbers, *[0.5 + math.log(gathered, 16)] * (self.steps > 1), *[0.7] * bool(self.after))

    def schedule(self, numbers: Sequence[float]) -> Moves | None:
        """The schedule at these numbers, as many as ``start()`` has, in [0, 1]; None where times would coincide.

        Numbers are, each where it applies: where the jumps before the flow end, where the flow ends and the jumps after
        it end, as shares of what is left up to 1, and how uneven times are in between (see :func:`warped`).
        """
        left = list(numbers)
        times, at = [0.0], 0.0
        if self.before:
            end = left.pop(0) * LATEST
            uneven = left.pop(0) if not self.steps else 0.5
            times += [end * warped(i / self.before, uneven) for i in range(1, self.before + 1)]
            at = end
        if self.steps:
            end = at + left.pop(0) * (LATEST - at)
            uneven = left.pop(0) if self.steps > 1 else 0.5
            times += [at + (end - at) * warped(i / self.steps, uneven) for i in range(1, self.steps + 1)]
            at = end
        if self.after:
            end = at + left.pop(0) * (LATEST - at)
            times += [at + (end - at) * i / self.after for i in range(1, self.after + 1)]
        return of_times(self.moves, times)


def of_times(moves: Sequence[Move], times: Sequence[float]) -> Moves | None:
    """The schedule of these moves and times, rounded; None unless the times increase after rounding."""
    rounded = tuple(round(t, DECIMALS) for t in times)
    if any(a >= b for a, b in zip(rounded, (*rounded[1:], 1.0), strict=True)):
        return None
    return Moves(tuple(moves), rounded)


def warped(u: float, uneven: float) -> float:
    """u in [0, 1] under u -> s u / (1 + (s - 1) u), s = 16^(uneven - 1/2): even at uneven = 1/2; above it, times gather
    near the end, below it near the beginning."""
    s = 16.0 ** (uneven - 0.5)
    return s * u / (1 + (s - 1) * u)


def families(nfe: int, flow: bool) -> tuple[Family, ...]:
    """The families of ``nfe`` evaluations; flow: whether the network has learned the flow, too.

    Jumps alone; up to two jumps, then steps by each solver; and the same with one jump after the flow. By Heun's method
    from noise on, also two and three jumps after it.
    """
    if nfe < 1:
        raise ValueError(f"nfe = {nfe}, expected at least 1")
    found = [Family(nfe - 1)]
    solvers: tuple[Move, ...] = ("heun", "adams", "euler") if flow else ()
    for solver in solvers:
        for before in (0, 1, 2):
            for after in (0, 1, 2, 3) if (solver, before) == ("heun", 0) else (0, 1):
                steps, rest = divmod(nfe - 1 - before - after, EVALUATIONS[solver])
                same_as_euler = solver == "adams" and steps == 1
                if steps >= 1 and rest == 0 and not same_as_euler:
                    found.append(Family(before, steps, solver, after))
    return tuple(found)

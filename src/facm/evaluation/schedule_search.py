"""The search behind ``facm schedule``: the moves and times of a student's sampler, for each number of evaluations.

What is minimised is the Fréchet distance of n samples from the data, in the features of an evaluator. All schedules are
measured on the same noise (common random numbers), whose seed is derived, so that no seed that an evaluation is given
draws it. For each number of evaluations:

1. every family of :func:`facm.sampling.families.families` at its ordinary times and with a short flow, and the methods
   that need no search;
2. from the best FINALISTS of them, a compass search over the family's few numbers;
3. from the best of all, a compass search over its times themselves;
4. the best of each of the CONFIRMED best sequences of moves, and the methods that need no search, are measured with
   CONFIRM_WITH further draws of n samples; what is nearer than all of the latter in each of the draws is found, the
   best of it on average; else the best method that needs no search stays.

The last is there since the least of many noisy distances is small by luck (the winner's curse): between families, whose
draws have little in common, luck at n = 1000 is more than what most schedules differ by. Of two that are level, one is
nearer in four draws of four once in sixteen times.

A compass search (Kolda, Lewis and Torczon, SIAM Review 45, 2003) tries a step up and down in each coordinate, goes
where that is better, and halves its step where nothing is. Each stops after ``trials`` schedules, so that the cost is
bounded: at most 2 families + 2 + (FINALISTS + 1) trials and (CONFIRMED + 2) CONFIRM_WITH, each with n samples. On the
noise of the last stage no schedule is worse than a method that needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

from torch import Tensor

from facm.core.rng import derive
from facm.distributed.collectives import by_first, in_order
from facm.evaluation.evaluate import conditions
from facm.evaluation.evaluator import Evaluator
from facm.evaluation.features import as_stored, check_samples, features_of
from facm.evaluation.frechet import Moments, frechet_distance
from facm.evaluation.samples import Sampling
from facm.pretrained.trained import Trained
from facm.sampling.families import LATEST, Family, families, of_times
from facm.sampling.generate import blocks
from facm.sampling.methods import Consistency, FlowThenJump, Method, Moves
from facm.sampling.moves import Move
from facm.sampling.schedule import MOST_EVALUATIONS, Found

Point = tuple[float, ...]
FINALISTS = 3
"""Starts of families from which numbers are searched."""
FIRST_STEP = 0.2
"""Of the compass search over a family's numbers, which are in [0, 1]."""
FIRST_STEP_OF_TIMES = 0.1
"""Of the compass search over times, as shares of what is left up to 1."""
CONFIRMED = 4
"""Sequences of moves whose best schedules are measured again."""
CONFIRM_WITH = 4
"""Further draws of as many samples as in the search."""
NEAREST = 0.02
"""Times are at least this share of what is left up to 1 apart."""
_SEARCH = 0x5EA2C4
"""Sets the noise of searches apart from that of evaluations."""


def seed_of_search(seed: int, stage: int = 0) -> int:
    """The seed of the noise of a search: of 63 bits, as nobody gives an evaluation. stage: from 1 on for the draws
    that its best schedules are measured with again."""
    return derive(seed, _SEARCH, stage)


@dataclass(frozen=True)
class Distance:
    """The Fréchet distance of a method's samples from the data, the same noise for each method.

    trained: whose samples.
    sampling: how many samples, their seed and their decoder; its method is replaced.
    evaluator: the features and the real data's statistics in them.
    """

    trained: Trained
    sampling: Sampling
    evaluator: Evaluator

    def __call__(self, method: Method) -> float:
        sampling, evaluator = replace(self.sampling, method=method), self.evaluator
        source = self.trained.source(evaluator.device)

        def extracted(indices: range) -> tuple[Tensor]:
            cond = conditions(self.trained.dataset, sampling, source, indices)
            x = sampling.draw(source, indices, cond)
            check_samples("generated", x, evaluator.reference.shape)
            return (features_of(evaluator.extractor, as_stored(x, evaluator.quantise)),)

        moments = Moments(evaluator.extractor.num_features)
        for _, (features,) in in_order(evaluator.world, blocks(sampling.n, sampling.batch_size), extracted):
            if features is not None:  # on the first rank
                moments.add(features)
        real = evaluator.reference
        return by_first(
            evaluator.world,
            lambda: frechet_distance(moments.mean, moments.covariance(), real.mean, real.covariance),
        )


def search(
    nfe: int,
    flow: bool,
    distance: Callable[[Method], float],
    trials: int,
    confirm: Sequence[Callable[[Method], float]] = (),
) -> Found:
    """The best schedule with ``nfe`` evaluations that was found.

    flow: whether the network has learned the flow besides the shortcut. distance: what is minimised, the same value
    whenever it is asked about a method. trials: schedules that each compass search may try. confirm: the same distance
    on other draws of noise, which choose among the best; none: ``distance`` does.
    Raises ValueError for another nfe than 1 to 16, and trials below 0.
    """
    if not 1 <= nfe <= MOST_EVALUATIONS:
        raise ValueError(f"nfe = {nfe}, expected 1 to {MOST_EVALUATIONS}")
    if trials < 0:
        raise ValueError(f"trials = {trials}, expected 0 or more")
    measured: dict[Moves, float] = {}

    def of(schedule: Moves | None) -> float:
        if schedule is None:
            return math.inf
        if schedule not in measured:
            measured[schedule] = distance(schedule)
        return measured[schedule]

    defaults = {name: as_moves(method) for name, method in _defaults(nfe, flow).items()}
    for method in defaults.values():
        of(method)
    starts = [(family, numbers) for family in families(nfe, flow) for numbers in family.starts()]
    starts.sort(key=lambda start: of(start[0].schedule(start[1])))
    for family, numbers in starts[:FINALISTS]:
        compass(_of_numbers(family, of), numbers, FIRST_STEP, trials)
    best = min(measured, key=measured.__getitem__)
    if best.moves:
        shares = _shares(best.times)
        compass(lambda point: of(of_times(best.moves, _times(point))), shares, FIRST_STEP_OF_TIMES, trials)
    confirmed = _confirmed(measured, confirm, tuple(defaults.values()))
    unsearched = [confirmed[method] for method in defaults.values()]
    nearer = [
        method
        for method, draws in confirmed.items()
        if all(ours < theirs for others in unsearched for ours, theirs in zip(draws, others, strict=True))
    ]
    best = min(nearer or defaults.values(), key=lambda method: fmean(confirmed[method]))
    by_name = {name: fmean(confirmed[method]) for name, method in defaults.items()}
    return Found(best, fmean(confirmed[best]), len(measured), by_name)


def _confirmed(
    measured: dict[Moves, float], confirm: Sequence[Callable[[Method], float]], defaults: tuple[Moves, ...]
) -> dict[Moves, tuple[float, ...]]:
    """The distances that the choice is made by, one for each draw."""
    if not confirm:
        return {method: (distance,) for method, distance in measured.items()}
    by_moves: dict[tuple[Move, ...], Moves] = {}
    for method in sorted(measured, key=measured.__getitem__):
        by_moves.setdefault(method.moves, method)
    candidates = dict.fromkeys((*list(by_moves.values())[:CONFIRMED], *defaults))  # in order, each once
    return {method: tuple(draw(method) for draw in confirm) for method in candidates}


def _of_numbers(family: Family, of: Callable[[Moves | None], float]) -> Callable[[Point], float]:
    return lambda point: of(family.schedule(point))


def as_moves(method: Consistency | FlowThenJump) -> Moves:
    """The same samples from the same noise, move by move."""
    jump: Move = "jump"
    moves = method.moves if isinstance(method, FlowThenJump) else (jump,) * (method.nfe - 1)
    return Moves(moves, tuple(method.schedule()))


def _defaults(nfe: int, flow: bool) -> dict[str, Consistency | FlowThenJump]:
    """The methods that need no search, by the name of their sampler."""
    return {"consistency": Consistency(nfe)} | ({"flow-jump": FlowThenJump(nfe)} if flow else {})


def compass(
    value: Callable[[Point], float],
    start: Sequence[float],
    step: float,
    trials: int,
    low: float = NEAREST,
    high: float = LATEST,
) -> tuple[Point, float]:
    """The best point that a compass search from ``start`` finds, and its value, which is finite or infinite.

    step: the first step in each coordinate; halved where no step is better. trials: most points after the start.
    low, high: every coordinate is kept between them.
    """
    best = tuple(min(max(coordinate, low), high) for coordinate in start)
    least, tried = value(best), 0
    while best and step > 10**-3:
        improved = False
        for axis in range(len(best)):
            for sign in (1, -1):
                moved = min(max(best[axis] + sign * step, low), high)
                if moved == best[axis]:
                    continue
                if tried == trials:
                    return best, least
                point = (*best[:axis], moved, *best[axis + 1 :])
                tried += 1
                if (found := value(point)) < least:
                    best, least, improved = point, found, True
                    break
        if not improved:
            step /= 2
    return best, least


def _shares(times: Sequence[float]) -> Point:
    """Each time after the first, as a share of what was left up to 1."""
    return tuple((b - a) / (1 - a) for a, b in pairwise(times))


def _times(shares: Sequence[float]) -> list[float]:
    """The inverse of :func:`_shares`."""
    times = [0.0]
    for share in shares:
        times.append(times[-1] + share * (1 - times[-1]))
    return times

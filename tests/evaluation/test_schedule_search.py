"""The search of schedules: the known optimum where there is one, never worse than no search, at a bounded cost."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch

from facm.core.objective import NetworkInterface
from facm.evaluation import Identity, Sampling, build_evaluator
from facm.evaluation.evaluate import evaluate
from facm.evaluation.frechet import Moments, frechet_distance
from facm.evaluation.schedule_search import (
    CONFIRMED,
    FINALISTS,
    Distance,
    as_moves,
    compass,
    search,
    seed_of_search,
)
from facm.flow.conditions import Unconditional
from facm.sampling.families import LATEST, families
from facm.sampling.methods import Consistency, FlowThenJump, Moves
from facm.sampling.moves import follow
from tests.evaluation.test_evaluate import Images, trained
from tests.sampling.test_samplers import M, S, average, instantaneous, randn

N = 400
X_0, Z = randn(N, 1), [randn(N, 1, seed=k) for k in range(1, 17)]


def gaussian(error):
    """The Fréchet distance from N(M, S^2) of a student whose jump from t misses its end by error(t)."""

    def F(x, t):
        return average(x, t) + error(t[:, None]) / (1 - t[:, None])

    def distance(method):
        x = follow(instantaneous, F, X_0, method.times, method.moves, lambda i: Z[i - 1])
        moments = Moments(1)
        moments.add(x)
        real = torch.tensor([M]).double(), torch.tensor([[S**2]]).double()
        return frechet_distance(moments.mean, moments.covariance(), *real)

    return distance


def test_two_jumps_meet_the_best_time_of_a_grid():
    """The first jump misses by 0.3, the second by |t - 0.6|: renoised at t, the sample is off by 0.3 t of it and the
    jump's own error. The best time is neither end."""
    distance = gaussian(lambda t: torch.where(t == 0, 0.3, (t - 0.6).abs()))
    best = min((distance(Moves(("jump",), (0.0, k / 100))), k / 100) for k in range(2, 98))
    found = search(2, False, distance, trials=40)
    assert found.method.moves == ("jump",)
    assert found.method.times[1] == pytest.approx(best[1], abs=0.02)
    assert found.distance == pytest.approx(best[0], abs=1e-3)
    assert found.distance < found.defaults["consistency"] - 0.01


def test_a_student_whose_jumps_miss_until_the_end_follows_the_flow_there():
    found = search(5, True, gaussian(lambda t: (1 - t) ** 2), trials=40)
    assert found.method.uses_the_flow
    assert found.method.times[-1] > 0.9
    assert found.distance < 0.5 * min(found.defaults.values())


def test_a_student_whose_flow_is_wrong_jumps_alone():
    def distance(method):
        return 1.0 + method.times[-1] + sum(move != "jump" for move in method.moves)

    found = search(4, True, distance, trials=10)
    assert set(found.method.moves) == {"jump"}
    assert found.distance < distance(as_moves(Consistency(4)))


def rugged(method):
    """A distance without any structure."""
    return int(hashlib.sha256(repr(method).encode()).hexdigest()[:8], 16) / 2**32


@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("confirmed", [False, True])
def test_it_is_never_worse_than_no_search_and_costs_no_more_than_it_says(nfe, confirmed):
    asked, again, trials = [], [], 5

    def distance(method):
        asked.append(method)
        return rugged(method)

    def confirm(method):
        again.append(method)
        return 1 - rugged(method)

    found = search(nfe, True, distance, trials, [confirm] * confirmed)
    judge = confirm if confirmed else distance
    assert found.distance == judge(found.method)
    assert found.method.nfe == nfe
    assert found.defaults == {
        "consistency": judge(as_moves(Consistency(nfe))),
        "flow-jump": judge(as_moves(FlowThenJump(nfe))),
    }
    assert found.distance <= min(found.defaults.values())
    assert found.tried <= 2 * len(families(nfe, True)) + 2 + (FINALISTS + 1) * trials
    assert len(again) <= (CONFIRMED + 2 + 4) * confirmed  # four of them are this test's own
    same = search(nfe, True, rugged, trials, [lambda method: 1 - rugged(method)] * confirmed)
    assert (same.method, same.distance) == (found.method, found.distance)


def test_only_what_is_nearer_in_every_draw_replaces_what_needs_no_search():
    """A schedule that is nearer on average by one lucky draw is not taken; one that is nearer in all of them is."""
    usual = [as_moves(FlowThenJump(4)), as_moves(Consistency(4))]

    def lucky(method):
        return 1.0 if method in usual else 0.1

    def unlucky(method):
        return 1.0 if method in usual else 1.1

    found = search(4, True, rugged, 5, [lucky, unlucky])
    assert found.method in usual
    assert found.distance == 1.0
    found = search(4, True, rugged, 5, [lucky, lucky])
    assert found.method not in usual
    assert found.distance == pytest.approx(0.1)


def test_what_cannot_be_searched_is_named():
    for nfe in (0, 17):
        with pytest.raises(ValueError, match=f"nfe = {nfe}, expected 1 to 16"):
            search(nfe, True, rugged, 1)
    with pytest.raises(ValueError, match="trials = -1"):
        search(1, True, rugged, -1)


# The compass search


def test_the_compass_finds_the_bottom_of_a_bowl_within_its_trials():
    calls = []

    def bowl(point):
        calls.append(point)
        return sum((x - a) ** 2 for x, a in zip(point, (0.3, 0.8), strict=True))

    point, value = compass(bowl, (0.9, 0.1), 0.2, 200)
    assert point == pytest.approx((0.3, 0.8), abs=2e-3)
    assert value == bowl(point)
    calls.clear()
    compass(bowl, (0.9, 0.1), 0.2, 7)
    assert len(calls) == 8
    assert compass(bowl, (0.9, 0.1), 0.2, 0)[0] == (0.9, 0.1)


def test_the_compass_stays_between_its_bounds_and_leaves_infinity():
    seen = []

    def slope(point):
        seen.append(point[0])
        return math.inf if point[0] > 0.9 else -point[0]

    point, _ = compass(slope, (2.0,), 0.2, 100)
    assert point[0] == pytest.approx(0.9, abs=0.02)
    assert max(seen) == LATEST


# The distance


def test_the_distance_is_that_of_an_evaluation_with_the_same_seed(tmp_path):
    dataset = Images()
    evaluator = build_evaluator(dataset, torch.device("cpu"), Identity())
    student = replace(trained(tmp_path), interface=NetworkInterface(Unconditional(), learns_shortcut=True))
    sampling = Sampling(Consistency(1), 50, seed_of_search(0), batch_size=16)
    distance = Distance(student, sampling, evaluator)
    for method in (Moves((), (0.0,)), Moves(("heun", "jump"), (0.0, 0.3, 0.6))):
        row = evaluate(student, Sampling(method, 50, seed_of_search(0)), evaluator)
        assert distance(method) == pytest.approx(row.measurement.frechet_distance, rel=1e-9)


def test_no_seed_that_an_evaluation_is_given_draws_the_noise_of_a_search():
    seeds = {seed_of_search(seed, stage) for seed in range(100) for stage in (0, 1)}
    assert len(seeds) == 200
    assert min(seeds) > 10**9

"""Sampling move by move: by hand, the same as its special cases, exact where the fields are, of the steps' orders."""

import json
import math
from itertools import pairwise

import pytest
import torch

from facm.derivative import OpLevel
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.sampling.families import Family, families, of_times, warped
from facm.sampling.generate import noise, sample
from facm.sampling.methods import Consistency, FlowThenJump, Moves
from facm.sampling.moves import evaluations, follow
from facm.sampling.schedule import Found, Schedule, parsed, read_schedule, spelled, write_schedule
from tests.sampling.test_samplers import CLASSES, M, S, average, fields, instantaneous, randn, source

__all__ = ["source"]  # a fixture

TEACHER = TeacherVelocity(Guidance(1.0))


def test_moves_by_hand():
    """v = x and F = 10 everywhere, from 1: Euler's step to 1.5; Adams', with the velocities 1.5 and 1 and half the
    length, to 1.5 + 0.25 (1.5 + 0.5 (1.5 - 1) / 2) = 1.90625; the jump from t = 0.75 to 4.40625, at 0.875 with noise 4
    4.35546875, whose Heun step of 1/16 and last jump follow."""
    asked, drawn = [], []

    def v(x, t):
        asked.append(("v", x.item(), t.item()))
        return x

    def F(x, t):
        asked.append(("F", x.item(), t.item()))
        return 10 + 0 * x

    def z(i):
        drawn.append(i)
        return torch.full((1, 1), 4.0, dtype=torch.float64)

    times = (0.0, 0.5, 0.75, 0.875, 0.9375)
    x = follow(v, F, torch.ones(1, 1, dtype=torch.float64), times, ("euler", "adams", "jump", "heun"), z)
    noisy = 0.875 * 4.40625 + 0.125 * 4
    predicted = noisy * (1 + 1 / 16)
    end = noisy + (noisy + predicted) / 32
    want = [("v", 1.0, 0.0), ("v", 1.5, 0.5), ("F", 1.90625, 0.75)]
    assert asked == [*want, ("v", noisy, 0.875), ("v", predicted, 0.9375), ("F", end, 0.9375)]
    assert x.item() == end + 0.625
    assert drawn == [1]
    assert evaluations(("euler", "adams", "jump", "heun")) == 6


def test_adams_after_a_jump_does_not_extrapolate_across_it():
    z = randn(8, 2, seed=1)
    moves = [("heun", "jump", "adams"), ("heun", "jump", "euler")]
    a, b = (follow(instantaneous, average, randn(8, 2), (0.0, 0.2, 0.5, 0.7), m, lambda i: z) for m in moves)
    assert torch.equal(a, b)


def test_consistency_and_flow_then_jump_are_special_cases(source):
    indices, cond = [3, 5, 6], torch.tensor([0, 2, 1])
    jumps = Moves(("jump",) * 3, (0.0, 0.25, 0.5, 0.75))
    assert torch.equal(sample(source, jumps, indices, cond, 4), sample(source, Consistency(4), indices, cond, 4))
    seven = FlowThenJump(7)
    heuns = Moves(("heun",) * 3, tuple(seven.schedule()))
    torch.testing.assert_close(sample(source, heuns, indices, cond, 4), sample(source, seven, indices, cond, 4))
    four = Moves(("heun", "jump"), tuple(FlowThenJump(4).schedule()))
    torch.testing.assert_close(
        sample(source, four, indices, cond, 4), sample(source, FlowThenJump(4), indices, cond, 4)
    )


@pytest.mark.parametrize(("step", "order"), [("euler", 1), ("adams", 2), ("heun", 2)])
def test_on_exact_fields_the_error_is_that_of_the_flow(step, order):
    x_0, errors = randn(256, 2), []
    for k in (20, 40, 80):
        times = [0.8 * i / k for i in range(k + 1)]
        errors.append((follow(instantaneous, average, x_0, times, (step,) * k) - (M + S * x_0)).abs().mean().item())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([order] * 2, abs=0.2)


def test_it_asks_both_heads_for_the_noise_of_each_jump(source):
    indices, cond = [3, 5, 6], torch.tensor([0, 2, 1])
    x_0, z = noise(4, indices, 0, (2,)), [noise(4, indices, i, (2,)) for i in range(3)]
    shortcut, anchor, _ = fields(source, cond)
    method = Moves(("jump", "adams", "adams", "jump"), (0.0, 0.1, 0.3, 0.6, 0.8))
    want = follow(anchor, shortcut, x_0, method.times, method.moves, z.__getitem__)
    torch.testing.assert_close(sample(source, method, indices, cond, 4), want)
    spent = []
    handle = source.network.register_forward_hook(lambda *_: spent.append(1))
    sample(source, method, indices, cond)
    handle.remove()
    assert len(spent) == method.nfe == 5


def test_the_flow_must_have_been_learned_only_where_it_is_followed():
    facm = FACM(Labels(CLASSES), TEACHER).interface
    plain = ContinuousCM(Labels(CLASSES), TEACHER, derivative=OpLevel()).interface
    jumps, flow = Moves(("jump",), (0.0, 0.5)), Moves(("adams", "jump"), (0.0, 0.5, 0.7))
    flow.check(facm)
    jumps.check(plain)
    with pytest.raises(ValueError, match=r"needs a flow and average velocities to its end.*has not learned both"):
        flow.check(plain)
    with pytest.raises(ValueError, match=r"needs average velocities to its end.*has not learned them"):
        jumps.check(FlowMatching(Labels(CLASSES)).interface)


def test_moves_need_noise_and_a_time_each():
    with pytest.raises(ValueError, match=r"moves = \['jump'\] need fresh_noise"):
        follow(instantaneous, average, randn(2, 1), (0.0, 0.5), ("jump",))
    with pytest.raises(ValueError, match="2 moves for 2 times"):
        follow(instantaneous, average, randn(2, 1), (0.0, 0.5), ("euler", "euler"))
    with pytest.raises(ValueError, match=r"times = \[0.0, 0.5, 0.4\]"):
        follow(instantaneous, average, randn(2, 1), (0.0, 0.5, 0.4), ("euler", "euler"))


# Families


def test_every_family_spends_what_it_says_and_starts_at_increasing_times():
    for nfe in range(1, 17):
        for flow in (True, False):
            found = families(nfe, flow)
            assert len(set(found)) == len(found)
            assert found[0] == Family(nfe - 1)
            assert len(found) == 1 or flow
            for family in found:
                assert len(family.starts()) == (2 if family.steps else 1)
                for numbers in family.starts():
                    schedule = family.schedule(numbers)
                    assert schedule is not None
                    assert schedule.nfe == family.nfe == nfe
                    assert schedule.moves == family.moves
    assert Family(1, 2, "adams", 1) in families(5, True)
    assert Family(0, 2) in families(5, True)
    assert Family(0, 2, "heun", 3) in families(8, True)
    assert Family(1, 1).starts()[1] == (0.1, 0.2)  # numbers: where the jump leads to, then how far the flow goes
    assert Family(0, 1, "adams") not in families(2, True)  # Euler's step by another name


def test_numbers_place_times_by_hand():
    """After two jumps to 0.98 / 2 = 0.49, the flow goes half of what is left to 0.98: 0.735; the last jump leads half
    of the rest."""
    got = Family(2, 1, "euler", 1).schedule((0.5, 0.5, 0.5))
    assert got == Moves(("jump", "jump", "euler", "jump"), (0.0, 0.245, 0.49, 0.735, 0.857))
    assert Family(3).schedule((1.0, 0.5)) == Moves(("jump",) * 3, (0.0, 0.327, 0.653, 0.98))
    assert Family(0, 2, "adams").schedule((0.5, 1.0)).times[1] == pytest.approx(0.49 * 0.8, abs=1e-3)
    assert warped(0.5, 0.5) == 0.5
    assert warped(0.5, 1.0) == pytest.approx(0.8)
    assert of_times(("jump",), (0.0, 1e-5)) is None
    with pytest.raises(ValueError, match="nfe = 0"):
        families(0, True)


# Stored schedules

CHOSEN = Moves(("adams", "jump"), (0.0, 0.5, 0.7))
SCHEDULE = Schedule("ab" * 32, "EMA 0.05", (Found(CHOSEN, 0.2, 30, {"consistency": 0.25}),), {"samples": 2000})


def test_a_schedule_comes_back_from_its_file_and_is_never_overwritten(tmp_path):
    file = tmp_path / "schedule.json"
    write_schedule(file, SCHEDULE)
    assert read_schedule(file) == SCHEDULE
    with pytest.raises(ValueError, match="exists and is not overwritten"):
        write_schedule(file, SCHEDULE)
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.json"]


def test_a_schedule_is_of_its_network_and_its_numbers_of_evaluations():
    assert SCHEDULE.method(3, "ab" * 32) == CHOSEN
    with pytest.raises(ValueError, match=r"run was searched for EMA 0.05 with the sha256 abababababababab, and these"):
        SCHEDULE.method(3, "cd" * 32, "run")
    with pytest.raises(ValueError, match="nfe = 4, but run has none of so many evaluations; expected one of 3"):
        SCHEDULE.method(4, "ab" * 32, "run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format=2), "is no schedule of format 1"),
        (lambda c: c.pop("network"), "is damaged.*'network'"),
        (lambda c: c["found"].clear(), r"has schedules of \[\] evaluations"),
        (lambda c: c["found"].append(c["found"][0]), r"has schedules of \[3, 3\] evaluations"),
        (lambda c: c["found"][0].update(nfe=4), "nfe = 4, but its moves make 3 evaluations"),
        (lambda c: c["found"][0]["method"].update(times=[0.0, 0.7, 0.5]), "times that start at 0 and increase"),
        (lambda c: c["found"][0]["method"].update(times=[0.0, 0.7]), "expected 3 times, one more than moves"),
        (lambda c: c["found"][0]["method"].update(type="facm.sampling:Euler"), "expected facm.sampling:Moves"),
        (lambda c: c["found"][0].update(distance=math.nan), "expected finite numbers"),
        (lambda c: c["found"][0].update(defaults=[]), "is damaged"),
    ],
)
def test_what_is_no_schedule_is_an_error_that_names_it(change, said):
    content = json.loads(spelled(SCHEDULE))
    change(content)
    with pytest.raises(ValueError, match=f"(?s)^there .*{said}"):
        parsed(json.dumps(content), "there")

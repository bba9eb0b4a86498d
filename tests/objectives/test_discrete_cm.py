"""Discrete-time consistency: the schedules of iCT and ECT by hand, zero loss where steps are exact, and value and
gradient equal to the equation written out slowly, sample by sample."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from facm.core.objective import Objective
from facm.core.serialize import from_json, to_json
from facm.core.types import Batch
from facm.flow.conditions import Labels, Unconditional
from facm.flow.distances import L2, PseudoHuber
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.discrete_cm import DiscreteCM
from facm.objectives.discrete_schedules import (
    DoublingSteps,
    OverStep,
    PairSchedule,
    PairWeight,
    ShrinkingGap,
    SignalToNoise,
    apart,
    noise_level,
    time_at,
)
from tests.core.core_parts import generator, randn
from tests.objectives.objective_parts import CLASSES, DIM, M, S, instantaneous, mlp, spread

# Schedules


def test_steps_double_and_stop_at_the_last():
    """images = 800, 10 to 1280: log2(128) + 1 = 8 stages of 100 images."""
    schedule = DoublingSteps(800)
    assert schedule.stage == 100
    seen = [0, 99, 100, 199, 200, 699, 700, 800, 10**9]
    assert [schedule.at(n).steps for n in seen] == [10, 10, 20, 20, 40, 640, 1280, 1280, 1280]
    uneven = DoublingSteps(1000, first=4, last=22)  # floor(22 / 4) = 5: 1000 / (log2 5 + 1) = 301.0
    assert uneven.stage == 301
    assert [uneven.at(n).steps for n in (0, 301, 602, 903)] == [4, 8, 16, 22]
    assert DoublingSteps(100, first=18, last=18).at(99).steps == 18


FAR = 10**12 - 1
LATE = [
    ShrinkingGap(stages=40, seen=10**10),
    ShrinkingGap(stage=1, stages=1024, q=1e6, seen=FAR),
    ShrinkingGap(mean=-30.0, stages=40, seen=10**10),
    ShrinkingGap(mean=-1000.0, seen=FAR),
    ShrinkingGap(mean=1000.0, seen=FAR),
    ShrinkingGap(std=1e12, seen=FAR),
    DoublingSteps(1000, first=2**20, last=2**20),
    DoublingSteps(1000, sigma_min=1e-6, sigma_max=1e6, rho=100.0, seen=FAR),
    DoublingSteps(1000, mean=16.3, seen=FAR),
    DoublingSteps(1000, mean=-18.2, seen=FAR),
]
"""Pairs that are closer than float32, or float64, can tell, or at the very ends."""


@pytest.mark.parametrize("schedule", LATE, ids=str)
def test_pairs_stay_apart_in_their_own_precision(schedule):
    t, s = schedule.sample(4096, generator())
    assert t.dtype == s.dtype == torch.float64
    assert bool(((t >= 0) & (t < s) & (s <= 1)).all())
    single = apart(t.float(), s.float())
    assert bool(((single[0] >= 0) & (single[0] < single[1]) & (single[1] <= 1)).all())
    assert torch.equal(single[0], t.float().clamp(max=1 - 2**-24))  # the noisier time stays where it was drawn


@pytest.mark.parametrize("weight", [OverStep(), SignalToNoise()])
@pytest.mark.parametrize("schedule", LATE, ids=str)
def test_a_loss_of_the_closest_pairs_is_a_number(schedule, weight):
    objective = DiscreteCM(Labels(CLASSES), schedule, DataVelocity(), weight=weight)
    batch = Batch(randn(256, DIM), torch.arange(256) % CLASSES)
    loss = objective(mlp(1), batch, generator()).total
    loss.backward()
    assert 0 <= loss.item() < math.inf


def test_the_weight_of_a_late_pair_is_that_of_its_step():
    """1/(sigma_t - sigma_s) in float64, where float32's levels are equal or a quarter off."""
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 2**-24])
    s = torch.nextafter(t, torch.ones(7))
    exact = 1 / (noise_level(t.double()) - noise_level(s.double()))
    torch.testing.assert_close(OverStep()(t, s).double(), exact, rtol=1e-6, atol=0)
    assert OverStep()(torch.zeros(1), torch.ones(1)) == 0  # from pure noise, whose level is infinite


def test_levels_are_karras():
    levels = DoublingSteps(800, first=4, last=4).levels()
    a, b = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert levels.tolist() == pytest.approx([(a + i / 4 * (b - a)) ** 7 for i in range(5)], rel=1e-12)
    assert levels[0].item() == pytest.approx(0.002)
    assert levels[-1].item() == pytest.approx(80)


def test_the_pairs_are_neighbours_and_the_last_is_data():
    schedule = DoublingSteps(800, first=4, last=8)
    levels = [sigma - 0.002 for sigma in schedule.levels().tolist()]
    t, s = schedule.sample(4000, generator())
    assert t.dtype == s.dtype == torch.float64
    assert (t < s).all()
    found = sorted({(round(a, 9), round(b, 9)) for a, b in zip(t.tolist(), s.tolist(), strict=True)})
    pairs = [(1 / (1 + levels[i + 1]), 1 / (1 + levels[i])) for i in range(4)]
    assert found == sorted((round(a, 9), round(b, 9)) for a, b in pairs)
    assert s.max() == 1
    assert len({round(x, 9) for x in schedule.at(800).sample(4000, generator())[0].tolist()}) == 8


def test_a_step_is_drawn_with_the_mass_of_its_ends():
    schedule = DoublingSteps(800, first=6, last=6, mean=-0.5, std=1.5)

    def below(sigma):
        return 0.5 * (1 + math.erf((math.log(sigma) + 0.5) / 1.5 / math.sqrt(2)))

    levels = schedule.levels().tolist()
    mass = [below(b) - below(a) for a, b in pairwise(levels)]
    total, edge = sum(mass), 0.0
    for i, m in enumerate(mass):  # just inside both ends of the step's quantiles
        u = torch.tensor([edge + 1e-9, edge + m / total - 1e-9], dtype=torch.float64)
        t, s = schedule.from_uniform(u)
        assert t.tolist() == pytest.approx([1 / (1 + levels[i + 1] - 0.002)] * 2)
        assert s.tolist() == pytest.approx([1 / (1 + levels[i] - 0.002)] * 2)
        edge += m / total
    u = torch.rand(5, generator=generator(3), dtype=torch.float64)
    for a, b in zip(schedule.sample(5, generator(3)), schedule.from_uniform(u), strict=True):
        assert torch.equal(a, b)
    assert schedule.from_uniform(torch.ones(1, dtype=torch.float64))[0] == pytest.approx(1 / (1 + 79.998))  # rounding


def test_the_gap_of_ect_shrinks_with_training():
    schedule = ShrinkingGap(stage=100, stages=4, q=4.0, mean=-0.3, std=0.7)
    assert [schedule.at(n).exponent for n in (0, 99, 100, 299, 300, 10**9)] == [1, 1, 2, 3, 4, 4]
    z = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    for seen, a in ((0, 1), (100, 2), (300, 4)):
        t, s = schedule.at(seen).from_normal(z)
        for i in range(3):
            sigma = math.exp(-0.3 + 0.7 * z[i])
            lower = sigma * max(0, 1 - (1 + 8 / (1 + math.exp(sigma))) / 4**a)
            assert t[i].item() == pytest.approx(1 / (1 + sigma), rel=1e-12)
            assert s[i].item() == pytest.approx(1 / (1 + lower), rel=1e-12)
            assert (s[i] == 1) == (a == 1 and i < 1)
    z = torch.randn(7, generator=generator(2), dtype=torch.float64)
    for a, b in zip(schedule.sample(7, generator(2)), schedule.from_normal(z), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("schedule", [DoublingSteps(800, seen=800), ShrinkingGap(seen=10**9)])
def test_steps_survive_single_precision(schedule):
    t, s = (x.float() for x in schedule.sample(100_000, generator()))
    assert (t > 0).all()
    assert (t < s).all()
    assert (s <= 1).all()
    assert isinstance(schedule, PairSchedule)


def test_weights_by_hand():
    t, s = torch.tensor([0.5, 0.2]), torch.tensor([1.0, 0.25])  # sigma: 1 -> 0 and 4 -> 3
    torch.testing.assert_close(noise_level(t), torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(time_at(noise_level(t)), t)
    torch.testing.assert_close(OverStep()(t, s), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(OverStep()(t, torch.tensor([0.8, 0.5])), torch.tensor([4 / 3, 1 / 3]))
    torch.testing.assert_close(SignalToNoise(0.5)(t, s), torch.tensor([1 + 4.0, 1 / 16 + 4]))
    assert isinstance(OverStep(), PairWeight)


def test_pseudo_huber_by_hand():
    x, y = torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]), torch.zeros(2, 4)
    y[1] = 1
    d = PseudoHuber(0.3)(x, y)
    assert d.tolist() == pytest.approx([math.sqrt(6.25 + 0.09) - 0.3, 0])
    paper = math.sqrt(25 + (0.00054 * math.sqrt(4)) ** 2) - 0.00054 * math.sqrt(4)
    assert PseudoHuber()(x, y)[0].item() * 2 == pytest.approx(paper)
    with pytest.raises(ValueError, match=r"PseudoHuber: c = 0.0"):
        PseudoHuber(0.0)


# Theory: data at a point, whose flow is straight, so that a step of any length is exact


class ToPoint(torch.nn.Module):
    def forward(self, x, t, cond=None):
        return (M - x) / (1 - t.clamp(max=1 - 1e-9))[:, None]


SCHEDULES = [DoublingSteps(800, last=40), DoublingSteps(800, seen=400), ShrinkingGap(100, q=4.0, seen=200)]


@pytest.mark.parametrize("velocity", [DataVelocity(), TeacherVelocity(NO_GUIDANCE)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_loss_where_the_flow_is_straight(schedule, velocity):
    objective = DiscreteCM(Unconditional(), schedule, velocity, distance=L2())
    batch = Batch(torch.full((256, DIM), M, dtype=torch.float64))
    assert objective(ToPoint(), batch, generator(), ToPoint()).total.item() < 1e-20

    class Off(ToPoint):
        def forward(self, x, t, cond=None):
            return super().forward(x, t) + 0.1 * t[:, None]

    assert objective(Off(), batch, generator(), ToPoint()).total.item() > 1e-6


class Exact(torch.nn.Module):
    """Along the exact flow of Gaussian data."""

    def forward(self, x, t, cond=None):
        t = t.clamp(max=1 - 1e-9)[:, None]
        return (M + S * (x - t * M) / spread(t) - x) / (1 - t)


def test_the_exact_networks_loss_falls_with_the_fourth_power_of_the_step():
    """An Euler step errs by the square of its length, and so does f."""
    objective = DiscreteCM(Unconditional(), ShrinkingGap(), TeacherVelocity(NO_GUIDANCE), distance=L2())
    x_1, x_0, t = M + S * randn(64, DIM), randn(64, DIM, seed=1), torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
    errors = []
    for h in (0.02, 0.01, 0.005):
        terms = objective.evaluate(Exact(), Interpolant.between(x_0, x_1, t), t + h, instantaneous)
        errors.append((terms.f_t - terms.f_s).square().mean().item())
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([4, 4], abs=0.2)


# The equation, written slowly

T = torch.tensor([0.03, 0.124, 0.125, 0.31, 0.57, 0.8, 0.801, 0.985], dtype=torch.float64)
NEXT = torch.tensor([0.05, 0.5, 0.2, 1.0, 0.6, 0.9, 0.85, 1.0], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
DROPPED = torch.tensor([False, True, True, False, False, False, False, True])


def ask(network, task, x, time, label):
    c = torch.full((1,), time, dtype=torch.float64)
    return network(x, c, label) if task == ExpandedInterval() else network(x, c, label, torch.ones_like(c))


def slow_loss(task, velocity, weight, distance, network, teacher, x_1, x_0, y, dropped):
    losses = []
    for i in range(len(x_1)):
        t, s, label, null = T[i].item(), NEXT[i].item(), y[i : i + 1], torch.tensor([CLASSES])
        a, b = x_1[i : i + 1], x_0[i : i + 1]
        x = t * a + (1 - t) * b
        with torch.no_grad():
            if velocity == "teacher":
                native = (torch.full((1,), t, dtype=torch.float64),)
                if task != ExpandedInterval():
                    native *= 2
                v, u = (teacher(x, native[0], c, *native[1:]) for c in (label, null))
                v = u + 1.75 * (v - u) if 0.125 <= t <= 0.8 else v
            else:
                v = a - b
                if 0.125 <= t <= 0.8 and not dropped[i]:
                    c = torch.full((1,), 2 - t if task == ExpandedInterval() else t, dtype=torch.float64)
                    u = network(x, c, null) if task == ExpandedInterval() else network(x, c, null, c)
                    v = u + 1.75 * (v - u)
            x_s = x + (s - t) * v
            f_s = x_s + (1 - s) * ask(network, task, x_s, s, label)
        f_t = x + (1 - t) * ask(network, task, x, t, label)
        losses.append(weight((1 - t) / t, (1 - s) / s) * distance(((f_t - f_s) ** 2).mean()))
    return torch.stack(losses)


@pytest.mark.parametrize(
    ("weight", "slow_weight"), [(OverStep(), lambda a, b: 1 / (a - b)), (SignalToNoise(), lambda a, b: a**-2 + 4)]
)
@pytest.mark.parametrize(
    ("distance", "slow_distance"),
    [(PseudoHuber(0.1), lambda e: (e + 0.01) ** 0.5 - 0.1), (L2(), lambda e: e)],
)
@pytest.mark.parametrize("velocity", ["teacher", "data"])
@pytest.mark.parametrize("task", [ExpandedInterval(), AuxiliaryTime()])
def test_value_and_gradient_match_the_equation_written_slowly(
    task, velocity, distance, slow_distance, weight, slow_weight
):
    auxiliary = task == AuxiliaryTime()
    network, teacher = mlp(1, auxiliary), mlp(2, auxiliary)
    x_1, x_0 = 2 * randn(8, DIM, seed=3), randn(8, DIM, seed=4)
    guidance = Guidance(1.75, 0.125, 0.8)
    target = TeacherVelocity(guidance) if velocity == "teacher" else DataVelocity(guidance)
    dropped = DROPPED if velocity == "data" else torch.zeros(8, dtype=torch.bool)
    y = torch.where(dropped, CLASSES, LABELS)
    objective = DiscreteCM(Labels(CLASSES), ShrinkingGap(), target, task, distance, weight, 0.1)
    terms = objective.evaluate(network, Interpolant.between(x_0, x_1, T, y, dropped), NEXT, teacher)
    slow = slow_loss(task, velocity, slow_weight, slow_distance, network, teacher, x_1, x_0, y, dropped)
    torch.testing.assert_close(terms.L_CM, slow, rtol=1e-9, atol=0)
    loss = terms.loss()
    torch.testing.assert_close(loss.total, slow.mean())
    torch.testing.assert_close(loss.terms["consistency"], slow.detach())
    parameters = list(network.parameters())
    fast_gradients = torch.autograd.grad(loss.total, parameters)
    torch.testing.assert_close(fast_gradients, torch.autograd.grad(slow.mean(), parameters), rtol=1e-7, atol=1e-10)
    assert terms.f_t.requires_grad
    assert not any(x.requires_grad for x in (terms.x_t, terms.v, terms.x_s, terms.f_s))


# Draws, parts, clock


def test_an_average_of_the_network_may_answer_at_the_later_time():
    """Where it is the network itself nothing changes; else the target is its own, and the prediction is not."""
    objective = DiscreteCM(Labels(CLASSES), ShrinkingGap(), DataVelocity(), momentum=0.95)
    assert objective.average_momentum == 0.95
    assert DiscreteCM(Labels(CLASSES), ShrinkingGap(), DataVelocity()).average_momentum is None
    network, average = mlp(1), mlp(3)
    point = Interpolant.between(randn(8, DIM, seed=4), 2 * randn(8, DIM, seed=3), T, LABELS)
    alone, same, asked = (objective.evaluate(network, point, NEXT, None, a) for a in (None, network, average))
    assert torch.equal(alone.f_s, same.f_s)
    assert torch.equal(alone.f_t, asked.f_t)
    answers = asked.x_s + (1 - NEXT)[:, None] * average(asked.x_s, NEXT, LABELS)
    torch.testing.assert_close(asked.f_s, answers.detach())
    batch = Batch(2 * randn(8, DIM), LABELS)
    given = objective(network, batch, generator(), None, average).total
    assert objective.at(100).asking(average)(network, batch, generator()).total == given
    assert objective(network, batch, generator()).total != given


def test_a_call_draws_noise_pairs_and_dropped_labels_from_the_generator():
    schedule = DoublingSteps(800)
    objective = DiscreteCM(Labels(CLASSES), schedule, DataVelocity(Guidance()), label_dropout=0.4)
    network, batch = mlp(1), Batch(randn(64, DIM), torch.arange(64) % CLASSES)
    rng = generator(5)
    x_0 = torch.randn(64, DIM, generator=rng, dtype=torch.float64)
    t, s = schedule.sample(64, rng)
    dropped = torch.rand(64, generator=rng) < 0.4
    cond = Labels(CLASSES).drop(batch.cond, dropped)
    expected = objective.evaluate(network, Interpolant.between(x_0, batch.x_1, t, cond, dropped), s).loss().total
    assert torch.equal(objective(network, batch, generator(5)).total, expected)
    plain = dataclasses.replace(objective, velocity=DataVelocity(), label_dropout=0.0)
    expected = plain.evaluate(network, Interpolant.between(x_0, batch.x_1, t, batch.cond), s).loss().total
    assert torch.equal(plain(network, batch, generator(5)).total, expected)


@pytest.mark.parametrize("sizes", [(8, 8), (4, 4, 4, 4), (1, 5, 10)])
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(sizes):
    objective = DiscreteCM(Labels(CLASSES), DoublingSteps(800), DataVelocity(Guidance()), label_dropout=0.4)
    assert objective.draws_for_whole_step
    network, batch = mlp(1), Batch(2 * randn(16, DIM), torch.arange(16) % CLASSES)
    whole, parts, start = objective(network, batch, generator(5)), [], 0
    for n in sizes:
        rows = slice(start, start + n)
        part = Batch(batch.x_1[rows], batch.cond[rows], start, 16)
        parts.append(objective(network, part, generator(5)).terms["consistency"])
        start += n
    torch.testing.assert_close(torch.cat(parts), whole.terms["consistency"], rtol=1e-12, atol=1e-12)


def test_the_clock_moves_the_schedule_and_nothing_else():
    for schedule in (DoublingSteps(800), ShrinkingGap(100)):
        objective = DiscreteCM(Labels(CLASSES), schedule, DataVelocity(), label_dropout=0.1)
        later = objective.at(300)
        assert isinstance(later, Objective)
        assert later == dataclasses.replace(objective, schedule=dataclasses.replace(schedule, seen=300))
        assert objective.schedule.seen == 0
        assert later.at(0) == objective
        assert from_json(to_json(objective)) == objective


def test_both_answers_of_one_step_share_a_dropout_mask():
    network, x = mlp(1, dropout=0.3).train(), randn(8, DIM)
    objective = DiscreteCM(Labels(CLASSES), ShrinkingGap(), DataVelocity())
    t = torch.full((8,), 0.5, dtype=torch.float64)
    terms = objective.evaluate(network, Interpolant.between(x, x, t, LABELS), t + 1e-12)
    torch.testing.assert_close(terms.f_t, terms.f_s, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(
        terms.f_t, objective.evaluate(network, Interpolant.between(x, x, t, LABELS), t + 1e-12).f_t
    )


def test_half_precision_answers_are_lifted():
    class Halved(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = mlp(1).float()

        def forward(self, x, t, cond):
            return self.network(x, t, cond).bfloat16()

    objective = DiscreteCM(Labels(CLASSES), ShrinkingGap(), TeacherVelocity(NO_GUIDANCE))
    x = randn(8, DIM).float()
    terms = objective.evaluate(Halved(), Interpolant.between(x.flip(0), x, T.float(), LABELS), NEXT.float(), Halved())
    assert all(value.dtype == torch.float32 for value in vars(terms).values())


def test_a_short_training_makes_the_data_in_one_step():
    """Data N(1.5, 0.4^2), from scratch with iCT's schedule: a sane mean and spread after one jump."""
    torch.manual_seed(0)
    network = MLP(2, 64, 2).build()
    optimizer, rng = torch.optim.Adam(network.parameters(), 2e-3), generator(0)
    objective = DiscreteCM(Unconditional(), DoublingSteps(300 * 256, first=4, last=32), DataVelocity())
    for step in range(300):
        x_1 = M + S * torch.randn(256, 2, generator=rng)
        optimizer.zero_grad()
        objective.at(step * 256)(network, Batch(x_1), rng).total.backward()
        optimizer.step()
    x_0 = torch.randn(4096, 2, generator=rng)
    x = x_0 + network(x_0, torch.zeros(4096)).detach()
    assert x.mean().item() == pytest.approx(M, abs=0.2)
    assert x.std().item() == pytest.approx(S, abs=0.2)


# Errors


def evaluate(s=NEXT, t=T, cond=LABELS, teacher=None, x_0=None, **fields):
    objective = DiscreteCM(Labels(CLASSES), ShrinkingGap(), **fields)
    x_0 = randn(8, DIM, seed=1) if x_0 is None else x_0
    return objective.evaluate(mlp(1), Interpolant.between(x_0, randn(8, DIM), t, cond), s, teacher)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (evaluate, r"TeacherVelocity\(\) needs a teacher"),
        (lambda: evaluate(T, NEXT, velocity=DataVelocity()), "expected t < s"),
        (lambda: evaluate(T, T, velocity=DataVelocity()), "expected t < s"),
        (lambda: evaluate(NEXT + 1, velocity=DataVelocity()), r"s runs over .*\[0, 1\]"),
        (lambda: evaluate(NEXT[:1], velocity=DataVelocity()), r"s has shape \(1,\)"),
        (lambda: evaluate(t=T[:1], velocity=DataVelocity()), r"t has shape \(1,\)"),
        (lambda: evaluate(cond=LABELS + 2, velocity=DataVelocity()), r"labels run over \[2, 4\]"),
        (lambda: evaluate(x_0=randn(8, 1), velocity=DataVelocity()), r"x_0 \(8, 1\)"),
        (lambda: evaluate(task=AuxiliaryTime(), velocity=DataVelocity()), "passes a second time r"),
        (
            lambda: DiscreteCM(Labels(3), ShrinkingGap(), DataVelocity(Guidance())),
            "label_dropout = 0.0, expected a positive one",
        ),
        (lambda: DiscreteCM(Unconditional(), ShrinkingGap()), r"condition = Unconditional\(\)"),
        (lambda: DoublingSteps(7), "images = 7, expected at least one for each"),
        (lambda: DoublingSteps(100, first=0), "first = 0, expected an integer within"),
        (lambda: DoublingSteps(100, first=5, last=4), "first = 5, expected at most last = 4"),
        (lambda: DoublingSteps(100, sigma_min=0.0), "sigma_min = 0.0"),
        (lambda: DoublingSteps(100, sigma_max=0.001), "sigma_max = 0.001"),
        (lambda: DoublingSteps(100, rho=0.0), "rho = 0.0"),
        (lambda: DoublingSteps(100, std=0.0), "DoublingSteps: std = 0.0"),
        (lambda: ShrinkingGap(0), "stage = 0"),
        (lambda: ShrinkingGap(stages=0), "stages = 0"),
        (lambda: ShrinkingGap(q=1.0), "q = 1.0"),
        (lambda: ShrinkingGap(k=-1.0), "k = -1.0"),
        (lambda: ShrinkingGap(std=-1.0), "ShrinkingGap: std = -1.0"),
        (lambda: SignalToNoise(0.0), "sigma_data = 0.0"),
        (lambda: DiscreteCM(Labels(3), DoublingSteps(100, 2, 4)).check_nfe(5), "nfe = 5, .*ends with 4 steps"),
    ],
)
def test_an_impossible_request_is_an_error_that_names_it(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_a_sampler_may_have_as_many_steps_as_training_ends_with():
    DiscreteCM(Labels(3), DoublingSteps(100, 2, 4)).check_nfe(4)
    DiscreteCM(Labels(3), ShrinkingGap()).check_nfe(10_000)


def test_defaults_are_the_papers():
    ict = DiscreteCM(Labels(3), DoublingSteps(800))
    assert (ict.distance, ict.weight) == (PseudoHuber(0.00054), OverStep())
    assert ict.velocity == TeacherVelocity()
    assert ict.schedule == DoublingSteps(800, 10, 1280, 0.002, 80.0, 7.0, -1.1, 2.0)
    assert ShrinkingGap() == ShrinkingGap(3_200_000, 8, 2.0, 8.0, 1.0, -1.1, 2.0)
    assert SignalToNoise() == SignalToNoise(0.5)
    assert DiscreteCM.learns_shortcut

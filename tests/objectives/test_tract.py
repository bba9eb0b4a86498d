"""TRACT: zero where the network makes a group's Euler steps in one, equal in value and gradient to its equations
written out slowly; the self-teacher's average, through training, a checkpoint and a resumption."""

import dataclasses

import pytest
import torch
from safetensors import safe_open

from facm.core.component import ComponentError
from facm.core.objective import as_objective
from facm.core.serialize import from_json, to_json
from facm.core.types import Batch
from facm.distributed.engine import Engine
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.velocity import TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.tract import TRACT
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals
from facm.runs.folder import create
from facm.runs.self_teacher import SelfTeacher
from facm.training.checks import check
from facm.training.loop import train
from tests.core.core_parts import generator, randn
from tests.objectives.objective_parts import CLASSES, DIM, M, S, check_parts, instantaneous, mlp
from tests.training.run_parts import flow_run

UNGUIDED = TeacherVelocity(NO_GUIDANCE)


def euler(x, t, end, steps):
    """The Euler steps of 1/steps along the exact velocity from t (B,) to ``end`` (B,)."""
    for _ in range(steps):
        on = (t < end - 1e-9).to(x.dtype)
        x = x + (on / steps)[:, None] * instantaneous(x, t)
        t = t + on / steps
    return x


class Exact(torch.nn.Module):
    """The average velocity of the steps that are left in t's group."""

    def __init__(self, steps, groups, factor=1.0):
        super().__init__()
        self.steps, self.groups, self.factor = steps, groups, factor

    def forward(self, x, t, cond=None):
        end = ((t * self.groups + 1e-9).floor() + 1) / self.groups
        return self.factor * (euler(x, t, end, self.steps) - x) / (end - t)[:, None]


@pytest.mark.parametrize("groups", [1, 4])
def test_a_network_that_makes_a_groups_steps_in_one_has_zero_loss(groups):
    objective = TRACT(Unconditional(), UNGUIDED, steps=16, groups=groups)
    batch = Batch(M + S * randn(512, DIM))
    assert objective(Exact(16, groups), batch, generator(), instantaneous).total < 1e-20
    assert objective(Exact(16, groups, 1.01), batch, generator(), instantaneous).total > 1e-5
    assert objective(Exact(32, groups), batch, generator(), instantaneous).total > 1e-5  # of other steps


def test_the_student_of_one_phase_teaches_the_next():
    """32 -> 4 -> 1: what the first phase ends with is the velocity of four steps that the second makes one of."""
    first, second = Exact(32, 4), TRACT(Unconditional(), UNGUIDED, steps=4)

    class Both(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return (euler(x, t, torch.ones_like(t), 32) - x) / (1 - t)[:, None]

    batch = Batch(M + S * randn(256, DIM))
    assert second(Both(), batch, generator(), first).total < 1e-20
    assert second(Both(), batch, generator(), instantaneous).total > 1e-5


def slow(steps, groups, network, teacher, average, x_1, x_0, t, y, w):
    losses = []
    for i in range(len(t)):
        a, b, label, k = x_1[i : i + 1], x_0[i : i + 1], y[i : i + 1], round(t[i].item() * steps)

        def ask(f, x, time, label=label):
            return f(x, torch.full((1,), time, dtype=x.dtype), label)

        s, x = k / steps, (1 - k / steps) * b + k / steps * a
        end = (k // (steps // groups) + 1) / groups
        with torch.no_grad():
            v_c, v_u = ask(teacher, x, s), ask(teacher, x, s, torch.tensor([CLASSES]))
            x_next, s_next = x + (v_u + w * (v_c - v_u) if 0.125 <= s <= 0.8 else v_c) / steps, (k + 1) / steps
            x_end = x_next if s_next == end else x_next + (end - s_next) * ask(average, x_next, s_next)
            x_hat = x + (1 - s) * (x_end - x) / (end - s)  # the signal whose DDIM step from x ends at x_end
        predicted = x + (1 - s) * ask(network, x, s)
        snr = s**2 / (1 - s) ** 2
        losses.append(max(1.0, snr) * ((predicted - x_hat) ** 2).sum() / DIM)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("own", [False, True], ids=["self-teacher", "network itself"])
def test_value_and_gradient_match_the_equations_written_slowly(groups, own):
    network, teacher, average = mlp(1, scale=1.5).train(), mlp(2, scale=1.5), mlp(3, scale=1.5)
    x_1, x_0, t = 2 * randn(16, DIM, seed=3), randn(16, DIM, seed=4), torch.arange(16, dtype=torch.float64) % 8 / 8
    y = torch.arange(16) % CLASSES
    objective = TRACT(Labels(CLASSES), TeacherVelocity(Guidance(1.75, 0.125, 0.8)), steps=8, groups=groups)
    point = Interpolant.between(x_0, x_1, t, y)
    loss = objective.evaluate(network, point, teacher, None if own else average).loss().total
    expected = slow(8, groups, network, teacher, network if own else average, x_1, x_0, t, y, 1.75)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    parameters = list(network.parameters())
    found, right = torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-11)
    assert all(p.grad is None for p in average.parameters())


@pytest.mark.parametrize("sizes", [(4, 12), (8, 8)])
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(sizes):
    objective = TRACT(Labels(CLASSES), UNGUIDED, steps=8, label_dropout=0.3)
    check_parts(objective, mlp(1), mlp(2), sizes)


def test_a_call_draws_every_time_of_the_grid_and_no_other():
    seen = []

    class Asked(Exact):
        def forward(self, x, t, cond=None):
            seen.append(t)
            return super().forward(x, t, cond)

    TRACT(Unconditional(), UNGUIDED, steps=10)(Asked(10, 1), Batch(randn(500, DIM)), generator(), instantaneous)
    times = seen[-1]  # of the prediction
    assert sorted({round(10 * t, 9) for t in times.tolist()}) == list(range(10))
    assert torch.bincount((10 * times).round().long()).min() > 25


# The self-teacher


def test_the_average_has_no_bias_of_its_start():
    """Of three steps with mu = 0.5: weights 4/7, 2/7, 1/7; the weights before the first do not count."""
    network = torch.nn.Linear(1, 1)
    average = SelfTeacher(network, 0.5, torch.device("cpu"))
    for step, value in enumerate((1.0, 2.0, 3.0), 1):
        network.weight.data.fill_(value)
        average.update(network, step)
    assert average.network.weight.item() == pytest.approx((4 * 3 + 2 * 2 + 1) / 7)
    assert not average.network.weight.requires_grad
    assert not average.network.training


def test_what_asks_the_average_is_the_objective_in_all_else():
    objective, average = TRACT(Labels(CLASSES), UNGUIDED, steps=8), mlp(3)
    asking = objective.asking(average)
    for name in ("condition", "velocity", "task", "draws_for_whole_step"):
        assert getattr(asking, name) == getattr(objective, name)
    batch = Batch(2 * randn(16, DIM), torch.arange(16) % CLASSES)
    args = mlp(1), batch
    assert asking(*args, generator(5), mlp(2)).total == objective(*args, generator(5), mlp(2), average).total
    assert asking(*args, generator(5), mlp(2)).total != objective(*args, generator(5), mlp(2)).total


def test_a_users_own_objective_may_ask_an_average():
    class Own:
        average_momentum = 0.9

        def __call__(self, network, batch, rng, teacher=None):
            raise AssertionError

        def asking(self, average):
            return lambda *_: average

    wrapped = as_objective(Own())
    assert wrapped.average_momentum == 0.9
    assert wrapped.asking("average")(None, None, None) == "average"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = create(tmp_path_factory.mktemp("tract") / "teacher", dataclasses.replace(flow_run(), images=64))
    train(check(dataclasses.replace(flow_run(), images=64)), folder)
    return folder.path


def saved(file):
    """Networks of a checkpoint by name."""
    with safe_open(file, "pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith(("network/", "self_teacher/", "ema/"))]  # noqa: SIM118
        return {name: tensors.get_tensor(name) for name in names}


def student(teacher, images=96, **changes):
    run = flow_run()
    source = FromRun(str(teacher))
    objective = TRACT(run.objective.condition, UNGUIDED, steps=4, **changes)
    every = Intervals(log=16, checkpoint=32, ema_snapshots=0, keep=10)
    return dataclasses.replace(run, objective=objective, teacher=source, initial=source, images=images, every=every)


def test_training_keeps_the_average_and_goes_on_with_it_bit_for_bit(teacher, tmp_path):
    whole = create(tmp_path / "whole", student(teacher))
    train(check(student(teacher)), whole)
    last = saved(whole.checkpoints()[-1])
    assert any(name.startswith("self_teacher/") for name in last)
    cut = create(tmp_path / "cut", student(teacher))
    train(check(student(teacher)), cut)
    for file in cut.checkpoints()[1:]:
        file.unlink()
    train(check(student(teacher)), cut)
    again = saved(cut.checkpoints()[-1])
    assert last.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in last.items())


def test_the_average_in_the_checkpoint_is_that_of_the_weights_after_each_step(teacher, tmp_path):
    run = dataclasses.replace(student(teacher, 48), batch_size=16)
    run = dataclasses.replace(run, every=Intervals(log=16, checkpoint=16, ema_snapshots=0, keep=10))
    folder = create(tmp_path / "run", run)
    train(check(run), folder)
    states = [saved(file) for file in folder.checkpoints()]
    assert len(states) == 3
    for name in (n.removeprefix("network/") for n in states[0] if n.startswith("network/")):
        values = [state[f"network/{name}"].double() for state in states]
        expected = (4 * values[2] + 2 * values[1] + values[0]) / 7
        torch.testing.assert_close(states[2][f"self_teacher/{name}"].double(), expected, rtol=1e-5, atol=1e-7)


def test_training_asks_the_average(teacher, tmp_path, monkeypatch):
    asked, whole = [], TRACT.__call__

    def call(self, network, batch, rng, teacher=None, average=None):
        asked.append(average)
        return whole(self, network, batch, rng, teacher, average)

    monkeypatch.setattr(TRACT, "__call__", call)
    train(check(student(teacher, 48)), create(tmp_path / "run", student(teacher, 48)))
    assert asked
    assert all(average is asked[0] for average in asked)
    assert not any(p.requires_grad for p in asked[0].parameters())


def test_without_momentum_there_is_no_average(teacher, tmp_path):
    folder = create(tmp_path / "run", student(teacher, momentum=0.0))
    train(check(student(teacher, momentum=0.0)), folder)
    assert not any(name.startswith("self_teacher/") for name in saved(folder.checkpoints()[-1]))


def test_an_average_of_a_sharded_network_is_refused(teacher):
    with pytest.raises(ValueError, match="asks an average of the network's weights"):
        check(student(teacher), Engine(parallel="fsdp"), 2)


# What it says about itself


def test_defaults_and_what_it_says_about_itself():
    objective = TRACT(Labels(CLASSES))
    assert (objective.steps, objective.groups, objective.momentum) == (1024, 1, 0.5)
    assert objective.interface.learns_shortcut
    assert not objective.interface.learns_flow
    assert TRACT(Labels(CLASSES), groups=4).bounds == (0, 0.25, 0.5, 0.75, 1)
    assert TRACT(Labels(CLASSES), momentum=0.0).average_momentum is None
    assert from_json(to_json(TRACT(Labels(CLASSES), groups=4))) == TRACT(Labels(CLASSES), groups=4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 10, "groups": 4}, "steps = 10, expected more than groups = 4, and a multiple of it"),
        ({"steps": 4, "groups": 4}, "steps = 4, expected more than groups = 4"),
        ({"momentum": 1.0}, "momentum = 1.0, expected"),
        ({"groups": 0}, "groups = 0, expected"),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(options, named):
    with pytest.raises(ComponentError, match=f"^TRACT: {named}"):
        TRACT(Labels(CLASSES), **options)


@pytest.mark.parametrize("t", [0.1, 1.0])
def test_times_off_the_grid_are_an_error(t):
    point = Interpolant.between(randn(2, DIM), randn(2, DIM), torch.full((2,), t, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected times that are multiples of 1/steps = 1/4, below 1"):
        TRACT(Unconditional(), UNGUIDED, steps=4).evaluate(Exact(4, 1), point, instantaneous)


@pytest.mark.slow
def test_a_short_training_makes_the_data_in_one_step():
    """Gaussian data from the exact flow: one step has the mean and the spread of eight Euler steps."""
    torch.manual_seed(0)
    network = MLP(2, 64, 2, 0).build()
    average = SelfTeacher(network, 0.5, torch.device("cpu"))
    objective = TRACT(Unconditional(), UNGUIDED, steps=8).asking(average.network)
    optimizer, rng = torch.optim.Adam(network.parameters(), 3e-3), generator(1)
    for step in range(1, 1501):
        x_1 = M + S * torch.randn(256, 2, generator=rng)
        optimizer.zero_grad()
        objective(network, Batch(x_1), rng, instantaneous).total.backward()
        optimizer.step()
        average.update(network, step)
    z, start = torch.randn(4000, 2, generator=rng), torch.zeros(4000)
    with torch.no_grad():
        ends = z + network(z, start)
    right = euler(z, start, start + 1, 8)
    assert (ends - right).square().mean().sqrt() < 0.05

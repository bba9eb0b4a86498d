"""Shortcut models: zero loss for the exact flow map, value and gradient equal to the equations written out slowly, the
steps and times that are drawn, and guidance at the smallest step alone."""

import dataclasses
from functools import partial

import pytest
import torch

from facm.core.objective import Objective
from facm.core.serialize import from_json, to_json
from facm.core.types import Batch
from facm.flow.conditions import Labels, Unconditional
from facm.flow.distances import L2
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.times import Uniform
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.shortcut_model import ShortcutModel
from facm.sampling.solvers import jumps, uniform_times
from tests.core.core_parts import generator, randn
from tests.objectives import objective_parts
from tests.objectives.objective_parts import CLASSES, DIM, M, S, spread

mlp = partial(objective_parts.mlp, auxiliary_time=True)


class Exact(torch.nn.Module):
    """Average velocity of Gaussian data from t to r along the exact flow, the instantaneous one at r = t."""

    auxiliary_time = True

    def forward(self, x, t, cond=None, r=None):
        t, r = t[:, None], (t if r is None else r)[:, None]
        still = M + (t * S**2 - (1 - t)) / spread(t) ** 2 * (x - t * M)
        there = r * M + spread(r) / spread(t) * (x - t * M)
        return torch.where(r == t, still, (there - x) / torch.where(r == t, 1.0, r - t))


# Theory


def test_the_exact_flow_map_has_zero_loss_but_for_the_smallest_step():
    objective = ShortcutModel(Unconditional(), TeacherVelocity(NO_GUIDANCE), label_dropout=0.0)
    x_1, x_0 = M + S * randn(70, DIM), randn(70, DIM, seed=1)
    d = torch.tensor([0.0, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4] * 10, dtype=torch.float64)
    t = torch.arange(70, dtype=torch.float64) % 2 / 2
    terms = objective.evaluate(Exact(), Interpolant.between(x_0, x_1, t), d, Exact())
    smallest = d == 1 / 128
    assert terms.L[~smallest].max() < 1e-25
    assert 1e-9 < terms.L[smallest].mean() < 1e-4  # two Euler steps of 1/128 there
    whole = objective.evaluate(
        Exact(), Interpolant.between(x_0, x_1, torch.zeros_like(t)), torch.full_like(d, 0.5), Exact()
    )
    assert whole.L.max() < 1e-25

    class Off(Exact):
        def forward(self, x, t, cond=None, r=None):
            return super().forward(x, t, cond, r) * (1 + 0.1 * (r - t)[:, None])

    assert objective.evaluate(Off(), Interpolant.between(x_0, x_1, t), d, Exact()).L[d > 1 / 64].min() > 1e-7


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_the_exact_flow_map_is_sampled_exactly_with_any_number_of_jumps(n):
    x_0 = randn(64, 2)
    x = jumps(lambda x, t, r: Exact()(x, t, None, r), x_0, uniform_times(n))
    torch.testing.assert_close(x, M + S * x_0)


# The equations, written slowly

STEPS = torch.tensor([0.0, 0.25, 1 / 16, 0.0, 0.5, 1 / 8, 1 / 16, 0.0], dtype=torch.float64)  # finest = 16
T = torch.tensor([0.3, 0.5, 0.125, 0.95, 0.0, 0.75, 0.875, 0.02], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
DROPPED = torch.tensor([True, False, False, False, False, False, False, True])


def at(network, x, t, r, label):
    return network(x, torch.full((1,), t, dtype=torch.float64), label, torch.full((1,), r, dtype=torch.float64))


def slow_loss(network, teacher, x_1, x_0, y, w, finest):
    losses = []
    for i in range(len(x_1)):
        t, d, label, null = T[i].item(), STEPS[i].item(), y[i : i + 1], torch.tensor([CLASSES])
        a, b = x_1[i : i + 1], x_0[i : i + 1]
        x = t * a + (1 - t) * b
        with torch.no_grad():
            if d == 0:
                target = a - b if teacher is None else at(teacher, x, t, t, label)
            else:

                def velocity(x, t, d=d, label=label, null=null):
                    if d > 1 / finest:
                        return at(network, x, t, t + d, label)
                    v = at(network, x, t, t, label)
                    return v + (w - 1) * (v - at(network, x, t, t, null)) if 0.3 <= t <= 0.9 else v

                first = velocity(x, t)
                landed = x + d * first
                landed = landed + d * velocity(landed, t + d)
                target = (landed - x) / (2 * d)
        losses.append(((at(network, x, t, t + 2 * d, label) - target) ** 2).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("w", [1.0, 1.5])
@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("finest", [16, 32])
def test_value_and_gradient_match_the_equations_written_slowly(finest, distilled, w):
    network, teacher = mlp(1), mlp(2) if distilled else None
    x_1, x_0 = 2 * randn(8, DIM, seed=3), randn(8, DIM, seed=4)
    y = torch.where(DROPPED, CLASSES, LABELS)
    velocity = TeacherVelocity(NO_GUIDANCE) if distilled else DataVelocity()
    objective = ShortcutModel(Labels(CLASSES), velocity, Guidance(w, 0.3, 0.9), denoise_timesteps=finest)
    terms = objective.evaluate(network, Interpolant.between(x_0, x_1, T, y, DROPPED), STEPS, teacher)
    slow = slow_loss(network, teacher, x_1, x_0, y, w, finest)
    torch.testing.assert_close(terms.L, slow, rtol=1e-9, atol=0)
    loss = terms.loss()
    torch.testing.assert_close(loss.total, slow.mean())
    torch.testing.assert_close(loss.terms["flow"], slow.detach()[STEPS == 0])
    torch.testing.assert_close(loss.terms["self_consistency"], slow.detach()[STEPS > 0])
    parameters = list(network.parameters())
    fast_gradients = torch.autograd.grad(loss.total, parameters)
    torch.testing.assert_close(fast_gradients, torch.autograd.grad(slow.mean(), parameters), rtol=1e-7, atol=1e-10)
    assert not terms.v_tar.requires_grad


def test_the_flow_may_be_guided_instead():
    """Its target is then DataVelocity's, and the steps are not guided once more."""
    network, x_1, x_0 = mlp(1), randn(8, DIM, seed=3), randn(8, DIM, seed=4)
    y = torch.where(DROPPED, CLASSES, LABELS)
    guided = ShortcutModel(Labels(CLASSES), DataVelocity(Guidance(2.0, 0.3, 0.9)), denoise_timesteps=16)
    terms = guided.evaluate(network, Interpolant.between(x_0, x_1, T, y, DROPPED), STEPS)
    plain = ShortcutModel(Labels(CLASSES), denoise_timesteps=16).evaluate(
        network, Interpolant.between(x_0, x_1, T, y, DROPPED), STEPS
    )
    inside = (STEPS == 0) & (T >= 0.3) & (T <= 0.9) & ~DROPPED
    assert inside.sum() == 0
    torch.testing.assert_close(terms.v_tar, plain.v_tar)
    terms = guided.evaluate(network, Interpolant.between(x_0, x_1, T, LABELS, torch.zeros(8, dtype=torch.bool)), STEPS)
    v, t = (x_1 - x_0)[:1], T[:1]
    null = network(terms.x_t[:1], t, torch.tensor([CLASSES]), t)
    torch.testing.assert_close(terms.v_tar[:1], null + 2 * (v - null))
    torch.testing.assert_close(terms.v_tar[3:4], (x_1 - x_0)[3:4])


# Draws


def test_steps_are_powers_of_two_and_times_their_multiples():
    objective = ShortcutModel(Labels(3))
    u, w = (torch.rand(40_000, generator=generator(i)) for i in range(2))
    d, t = objective.steps_from(u, w)
    sizes = [2.0**-k for k in range(1, 8)]
    assert sorted(set(d.tolist()), reverse=True) == sizes
    for size in sizes:
        share = d == size
        assert share.float().mean().item() == pytest.approx(1 / 7, abs=0.01)
        steps = t[share] / (2 * size)
        assert torch.equal(steps, steps.round())
        assert set(steps.tolist()) == set(range(round(1 / (2 * size))))
    assert (t + 2 * d <= 1).all()
    assert objective.steps_from(torch.tensor([0.0, 0.999]), torch.tensor([0.999, 0.999]))[0].tolist() == [0.5, 1 / 128]


def test_a_call_draws_in_order_and_bootstraps_one_sample_of_every():
    objective = ShortcutModel(Labels(CLASSES), time=Uniform(0.1, 0.9), bootstrap_every=4, label_dropout=0.4)
    network, batch = mlp(1), Batch(randn(64, DIM), torch.arange(64) % CLASSES)
    rng = generator(5)
    x_0 = torch.randn(64, DIM, generator=rng, dtype=torch.float64)
    t = objective.time.sample(64, rng).double()
    u, w = (torch.rand(64, generator=rng).double() for _ in range(2))
    dropped = torch.rand(64, generator=rng) < 0.4
    bootstrapped = torch.arange(64) % 4 == 0
    d, t_boot = objective.steps_from(u, w)
    dropped &= ~bootstrapped
    cond = torch.where(dropped, CLASSES, batch.cond)
    t, d = torch.where(bootstrapped, t_boot, t), torch.where(bootstrapped, d, 0)
    expected = objective.evaluate(network, Interpolant.between(x_0, batch.x_1, t, cond, dropped), d).loss()
    found = objective(network, batch, generator(5))
    assert torch.equal(found.total, expected.total)
    assert len(found.terms["self_consistency"]) == 16
    assert len(found.terms["flow"]) == 48
    plain = dataclasses.replace(objective, label_dropout=0.0)
    expected = plain.evaluate(network, Interpolant.between(x_0, batch.x_1, t, batch.cond), d).loss()
    assert torch.equal(plain(network, batch, generator(5)).total, expected.total)


@pytest.mark.parametrize("sizes", [(8, 8), (4, 4, 4, 4), (5, 6, 5)])
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(sizes):
    objective = ShortcutModel(Labels(CLASSES), guidance=Guidance(1.5), label_dropout=0.4)
    assert objective.draws_for_whole_step
    network, batch = mlp(1), Batch(2 * randn(16, DIM), torch.arange(16) % CLASSES)
    whole, total, start = objective(network, batch, generator(5)), 0.0, 0
    terms = {name: [] for name in whole.terms}
    for n in sizes:
        rows = slice(start, start + n)
        part = objective(network, Batch(batch.x_1[rows], batch.cond[rows], start, 16), generator(5))
        total += n / 16 * part.total.item()
        for name, values in part.terms.items():
            terms[name].append(values)
        start += n
    assert total == pytest.approx(whole.total.item(), rel=1e-12)
    for name, values in terms.items():
        torch.testing.assert_close(torch.cat(values), whole.terms[name], rtol=1e-12, atol=1e-12)


def test_all_answers_of_one_step_share_a_dropout_mask():
    """At a step of almost no length every question is the same one."""
    network, x = mlp(1, dropout=0.3).train(), randn(8, DIM)
    objective = ShortcutModel(Labels(CLASSES), denoise_timesteps=2**30)
    d = torch.full((8,), 2.0**-30, dtype=torch.float64)
    terms = objective.evaluate(network, Interpolant.between(x, x, T, LABELS), d)
    torch.testing.assert_close(terms.F, terms.v_tar, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(terms.F, objective.evaluate(network, Interpolant.between(x, x, T, LABELS), d).F)


def test_half_precision_answers_are_lifted():
    class Halved(torch.nn.Module):
        auxiliary_time = True

        def __init__(self):
            super().__init__()
            self.network = mlp(1).float()

        def forward(self, x, t, cond, r):
            return self.network(x, t, cond, r).bfloat16()

    x = randn(8, DIM).float()
    objective = ShortcutModel(Labels(CLASSES), guidance=Guidance(1.5, 0.0), denoise_timesteps=16)
    terms = objective.evaluate(Halved(), Interpolant.between(x.flip(0), x, T.float(), LABELS), STEPS.float())
    assert terms.F.dtype == terms.v_tar.dtype == terms.L.dtype == torch.float32


def test_a_short_training_makes_the_data_in_one_and_in_four_jumps():
    torch.manual_seed(0)
    network = MLP(2, 64, 2, auxiliary_time=True).build()
    optimizer, rng = torch.optim.Adam(network.parameters(), 2e-3), generator(0)
    objective = ShortcutModel(Unconditional(), label_dropout=0.0, denoise_timesteps=16)
    for _ in range(500):
        x_1 = M + S * torch.randn(256, 2, generator=rng)
        optimizer.zero_grad()
        objective(network, Batch(x_1), rng).total.backward()
        optimizer.step()
    x_0 = torch.randn(4096, 2, generator=rng)
    for n in (1, 4):
        x = jumps(lambda x, t, r: network(x, t, None, r), x_0, uniform_times(n))
        assert x.mean().item() == pytest.approx(M, abs=0.2)
        assert x.std().item() == pytest.approx(S, abs=0.25)


# Errors


def evaluate(t=T, d=STEPS, cond=LABELS, x_0=None, network=None, **fields):
    objective = ShortcutModel(Labels(CLASSES), denoise_timesteps=16, **fields)
    x_0 = randn(8, DIM, seed=1) if x_0 is None else x_0
    return objective.evaluate(network or mlp(1), Interpolant.between(x_0, randn(8, DIM), t, cond), d)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: evaluate(velocity=TeacherVelocity(NO_GUIDANCE)), r"TeacherVelocity\(\) needs a teacher"),
        (lambda: evaluate(network=MLP(DIM, 8, 1, CLASSES).build()), "passes a second time r"),
        (lambda: evaluate(t=T[:1]), r"t has shape \(1,\)"),
        (lambda: evaluate(t=T + 0.5), r"t runs over"),
        (lambda: evaluate(d=STEPS[:3]), r"d has shape \(3,\)"),
        (lambda: evaluate(d=-STEPS), r"d runs over"),
        (lambda: evaluate(d=STEPS + 0.25), r"t \+ 2 d reaches 1\.5"),
        (lambda: evaluate(cond=LABELS + 2), r"labels run over \[2, 4\]"),
        (lambda: evaluate(x_0=randn(8, 1)), r"x_0 \(8, 1\)"),
        (lambda: ShortcutModel(Labels(3), denoise_timesteps=100), "denoise_timesteps = 100, expected a power of two"),
        (lambda: ShortcutModel(Labels(3), denoise_timesteps=1), "denoise_timesteps = 1, expected an integer within"),
        (lambda: ShortcutModel(Labels(3), bootstrap_every=1), "bootstrap_every = 1"),
        (lambda: ShortcutModel(Labels(3), label_dropout=1.0), "label_dropout = 1.0"),
        (
            lambda: ShortcutModel(Labels(3), guidance=Guidance(1.5), label_dropout=0.0),
            "label_dropout = 0.0, expected a positive one",
        ),
        (lambda: ShortcutModel(Unconditional(), label_dropout=0.2), "label_dropout = 0.2, expected 0 with"),
        (
            lambda: ShortcutModel(Unconditional(), guidance=Guidance(1.5), label_dropout=0.0),
            r"condition = Unconditional\(\)",
        ),
        (lambda: ShortcutModel(Labels(3), TeacherVelocity(), Guidance(1.5)), "one of them guided"),
        (
            lambda: ShortcutModel(Labels(CLASSES))(mlp(1), Batch(randn(3, DIM), LABELS[:3]), generator()),
            "3 samples at once and bootstrap_every = 4",
        ),
        (lambda: ShortcutModel(Labels(3)).check_nfe(3), "nfe = 3 jumps, expected a power of two up to 64"),
        (lambda: ShortcutModel(Labels(3)).check_nfe(0), "nfe = 0 jumps"),
        (lambda: ShortcutModel(Labels(3)).check_nfe(128), "nfe = 128 jumps.* Euler's"),
    ],
)
def test_an_impossible_request_is_an_error_that_names_it(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_what_may_be_asked_for():
    for n in (1, 2, 64):
        ShortcutModel(Labels(3)).check_nfe(n)
    ShortcutModel(Labels(3), bootstrap_every=2, denoise_timesteps=2, label_dropout=0.0)
    objective = ShortcutModel(Labels(3), guidance=Guidance(1.5))
    assert isinstance(objective, Objective)
    assert from_json(to_json(objective)) == objective
    assert (objective.task, objective.learns_jumps) == (AuxiliaryTime(), True)
    assert (objective.learns_shortcut, objective.learns_flow, objective.group_size) == (False, True, 4)


def test_defaults_are_the_papers():
    objective = ShortcutModel(Labels(3))
    assert (objective.velocity, objective.guidance, objective.distance) == (DataVelocity(), NO_GUIDANCE, L2())
    assert (objective.bootstrap_every, objective.denoise_timesteps, objective.label_dropout) == (4, 128, 0.1)
    assert objective.time == Uniform()

"""Inductive moment matching: zero loss where jumps are exact, small where distributions agree, and equal in value and
gradient to the paper's equations written out slowly in the paper's own time and scale."""

import math
from functools import partial

import pytest
import torch

from facm.core.objective import Objective
from facm.core.serialize import from_json, to_json
from facm.core.types import Batch
from facm.flow.conditions import Labels, Unconditional
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.times import Uniform
from facm.networks.mlp import MLP
from facm.objectives.imm import IMM, laplace
from facm.sampling.solvers import jumps, uniform_times
from tests.core.core_parts import generator, randn
from tests.objectives import objective_parts
from tests.objectives.objective_parts import CLASSES, DIM, M, S, spread

mlp = partial(objective_parts.mlp, auxiliary_time=True)


def full(value, n):
    return torch.full((n,), value, dtype=torch.float64)


# The parts, by hand


def test_laplace_kernel_by_hand():
    x = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    y = torch.zeros_like(x)
    k = laplace(x, y, torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert k.shape == (2, 2, 2)
    far, near = math.exp(-5 / (2 * 0.5)), math.exp(-math.sqrt(2) / (2 * 0.25))
    assert k[0].tolist() == [pytest.approx([1, 1]), pytest.approx([far, far])]
    assert k[1].flatten().tolist() == pytest.approx([near] * 4)
    between = laplace(x, x.flip(1), torch.ones(2, dtype=torch.float64))
    assert between[0].tolist() == [pytest.approx([math.exp(-2.5), 1]), pytest.approx([1, math.exp(-2.5)])]


def test_laplace_kernel_of_a_particle_with_itself_has_no_gradient():
    x = randn(2, 3, DIM).requires_grad_()
    k = laplace(x, x, torch.ones(2, dtype=torch.float64))
    (g,) = torch.autograd.grad(k.diagonal(dim1=1, dim2=2).sum(), x)
    assert torch.equal(g, torch.zeros_like(g))
    (g,) = torch.autograd.grad(laplace(x, x, torch.ones(2, dtype=torch.float64)).sum(), x)
    assert g.isfinite().all()
    assert g.abs().sum() > 0


def test_ahead_takes_a_constant_from_eta():
    objective = IMM(Labels(3), decrement=0.5, gap=0.01)
    t = torch.tensor([0.25, 0.25, 0.01, 0.9, 0.995, 0.0, 0.8], dtype=torch.float64)
    s = torch.tensor([1.0, 0.26, 1.0, 1.0, 1.0, 1.0, 0.81], dtype=torch.float64)
    r = objective.ahead(t, s)
    # eta = 3 - 0.5 -> 1/3.5; capped at s; 99 - 0.5 is less than the gap; eta below 0 is data, capped at 1
    assert r.tolist() == pytest.approx([1 / 3.5, 0.26, 0.02, 1.0, 1.0, 0.01, 0.81])
    assert IMM(Labels(3), decrement=3.0).ahead(full(0.5, 1), full(0.9, 1)).item() == pytest.approx(0.9)
    default = IMM(Labels(3))
    assert default.ahead(full(0.5, 1), full(1.0, 1)).item() == pytest.approx(1 / (1 + 1 - 160 / 4096))


@pytest.mark.parametrize(("a", "b"), [(1.0, 5.0), (2.0, 4.0), (1.0, 0.0)])
def test_weight_is_the_papers(a, b):
    """1/2 sigmoid(b - lambda) (-dlambda/dtau) alpha^a/(alpha^2 + sigma^2), alpha = 1 - tau, sigma = tau."""
    tau = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    log_snr = 2 * ((1 - tau).log() - tau.log())
    (slope,) = torch.autograd.grad(log_snr.sum(), tau)
    expected = 0.5 * torch.sigmoid(b - log_snr) * -slope * (1 - tau) ** a / ((1 - tau) ** 2 + tau**2)
    objective = IMM(Labels(3), a=a, b=b)
    torch.testing.assert_close(objective.weight((1 - tau).detach()), expected.detach())
    assert objective.weight(torch.tensor([0.0, 1.0])).tolist() == [1.0 if a == 1 else 0.0, 0.0]


# Theory


class ToPoint(torch.nn.Module):
    """All data at M: flows are straight."""

    auxiliary_time = True

    def forward(self, x, t, cond=None, r=None):
        return (M - x) / (1 - t).clamp(min=1e-9)[:, None]


@pytest.mark.parametrize("particles", [1, 4])
def test_zero_loss_where_the_flow_is_straight(particles):
    objective = IMM(Unconditional(), particles=particles, label_dropout=0.0)
    batch = Batch(torch.full((256, DIM), M, dtype=torch.float64))
    assert abs(objective(ToPoint(), batch, generator()).total.item()) < 1e-7

    class Off(ToPoint):
        def forward(self, x, t, cond=None, r=None):
            return super().forward(x, t) + 0.3

    assert objective(Off(), batch, generator()).total.item() > 1e-4


class Exact(torch.nn.Module):
    """The exact flow map of Gaussian data: not the interpolant of any pair, but of the right distribution."""

    auxiliary_time = True

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, x, t, cond=None, r=None):
        t, r = t[:, None], r[:, None]
        return self.factor * (r * M + spread(r) / spread(t) * (x - t * M) - x) / (r - t)


def test_many_particles_tell_the_right_distribution_from_a_wrong_one():
    objective = IMM(Unconditional(), particles=1000, decrement=1.0, label_dropout=0.0)
    x_1, x_0, t, s = M + S * randn(1000, 2), randn(1000, 2, seed=1), full(0.3, 1000), full(0.9, 1000)
    right = objective.evaluate(Exact(), Interpolant.between(x_0, x_1, t), s).L[0].item()
    one = IMM(Unconditional(), particles=1, decrement=1.0, label_dropout=0.0)
    alone = one.evaluate(Exact(), Interpolant.between(x_0, x_1, t), s).L.mean().item()
    wrong = objective.evaluate(Exact(1.1), Interpolant.between(x_0, x_1, t), s).L[0].item()
    assert 0 <= right < 0.02 * alone  # where one particle compares samples that need not agree
    assert wrong > 5 * right


def test_the_exact_flow_map_is_sampled_exactly():
    x_0 = randn(64, 2)
    x = jumps(lambda x, t, r: Exact()(x, t, None, r), x_0, uniform_times(4))
    torch.testing.assert_close(x, M + S * x_0)


# The equations, written slowly, in the paper's time (noise at 1) and scale (data and noise times sigma_data)


def slow_loss(o, network, x_1, x_0, t, s, y):
    sigma_data, m, n = 0.5, o["particles"], x_1[0].numel()
    losses = []
    for g in range(0, len(x_1), m):
        tau, sigma_s = 1 - t[g].item(), 1 - s[g].item()
        eta = tau / (1 - tau) - o["decrement"]
        rho = max(sigma_s, min(eta / (1 + eta) if eta > 0 else 0.0, tau - o["gap"]))

        def f(x, here, label, sigma_s=sigma_s):
            """f(x, t -> s) = x - (t - s) sigma_data G, G the paper's network and -F this package's."""
            c, r = full(1 - here, 1), full(1 - sigma_s, 1)
            return x - (here - sigma_s) * sigma_data * -network(x / sigma_data, c, label, r)

        jumped, target = [], []
        for i in range(g, g + m):
            data, eps, label = sigma_data * x_1[i : i + 1], sigma_data * x_0[i : i + 1], y[i : i + 1]
            jumped.append(f((1 - tau) * data + tau * eps, tau, label))
            with torch.no_grad():
                target.append(f((1 - rho) * data + rho * eps, rho, label))

        def k(a, b, tau=tau, sigma_s=sigma_s):
            distance = (a - b).norm() if not torch.equal(a, b) else torch.zeros((), dtype=torch.float64)
            return torch.exp(-torch.clamp(distance, min=sigma_data * 1e-8) / ((tau - sigma_s) * sigma_data * n))

        total = 0
        for j in range(m):
            for i in range(m):
                total = total + k(jumped[j], jumped[i]) + k(target[j], target[i]) - 2 * k(jumped[j], target[i])
        log_snr, slope = 2 * math.log((1 - tau) / tau), -2 / tau - 2 / (1 - tau)
        weight = 0.5 / (1 + math.exp(log_snr - o["b"])) * -slope
        weight *= (1 - tau) ** o["a"] / ((1 - tau) ** 2 + tau**2)
        losses.append(weight * total / m**2)
    return torch.stack(losses)


T = torch.tensor([0.03, 0.2, 0.31, 0.57, 0.8, 0.95], dtype=torch.float64)
FAR = torch.tensor([0.9, 0.201, 1.0, 0.6, 0.85, 0.99], dtype=torch.float64)
LABELS = torch.arange(12) % (CLASSES + 1)


@pytest.mark.parametrize(
    ("particles", "a", "decrement"), [(2, 1.0, 0.2), (2, 2.0, 160 / 4096), (1, 1.0, 3.0), (4, 1.0, 0.2)]
)
def test_value_and_gradient_match_the_equations_written_slowly(particles, a, decrement):
    o = {"particles": particles, "a": a, "b": 4.0, "decrement": decrement, "gap": 1e-3}
    network, x_1, x_0 = mlp(1), 2 * randn(12, DIM, seed=3), randn(12, DIM, seed=4)
    t, s = (x[: 12 // particles].repeat_interleave(particles) for x in (T, FAR))
    if particles == 1:
        t, s = T.repeat(2), FAR.repeat(2)
    objective = IMM(Labels(CLASSES), **o)
    terms = objective.evaluate(network, Interpolant.between(x_0, x_1, t, LABELS), s)
    slow = slow_loss(o, network, x_1, x_0, t, s, LABELS)
    torch.testing.assert_close(terms.L, slow.repeat_interleave(particles), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms.loss().total, slow.mean(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms.loss().terms["moments"], terms.L.detach())
    parameters = list(network.parameters())
    fast_gradients = torch.autograd.grad(terms.loss().total, parameters)
    slow_gradients = torch.autograd.grad(slow.mean(), parameters)
    torch.testing.assert_close(fast_gradients, slow_gradients, rtol=1e-6, atol=1e-9)
    assert terms.y_t.requires_grad
    assert not terms.y_r.requires_grad
    assert all(g.isfinite().all() for g in fast_gradients)


def test_images_are_flattened():
    class Network(torch.nn.Module):
        auxiliary_time = True

        def forward(self, x, t, cond=None, r=None):
            return x.sin() * (1 + r - t).reshape(-1, *[1] * (x.ndim - 1))

    objective = IMM(Unconditional(), label_dropout=0.0)
    x_1, x_0, t, s = randn(8, 3, 2, 2), randn(8, 3, 2, 2, seed=1), full(0.3, 8), full(0.8, 8)
    flat = objective.evaluate(Network(), Interpolant.between(x_0.flatten(1), x_1.flatten(1), t), s)
    torch.testing.assert_close(objective.evaluate(Network(), Interpolant.between(x_0, x_1, t), s).L, flat.L)


# Draws


def test_a_call_draws_in_order_and_groups_share_their_times():
    objective = IMM(Labels(CLASSES), Uniform(0.1, 0.9), label_dropout=0.4)
    network, batch = mlp(1), Batch(randn(64, DIM), torch.arange(64) % CLASSES)
    rng = generator(5)
    x_0 = torch.randn(64, DIM, generator=rng, dtype=torch.float64)
    t = objective.time.sample(16, rng)
    s = t + (1 - t) * torch.rand(16, generator=rng)
    dropped = torch.rand(64, generator=rng) < 0.4
    t, s = (x.repeat_interleave(4).double() for x in (t, s))
    cond = torch.where(dropped, CLASSES, batch.cond)
    expected = objective.evaluate(network, Interpolant.between(x_0, batch.x_1, t, cond), s).loss()
    assert torch.equal(objective(network, batch, generator(5)).total, expected.total)
    plain = IMM(Labels(CLASSES), Uniform(0.1, 0.9), label_dropout=0.0)
    expected = plain.evaluate(network, Interpolant.between(x_0, batch.x_1, t, batch.cond), s).loss()
    assert torch.equal(plain(network, batch, generator(5)).total, expected.total)


@pytest.mark.parametrize("sizes", [(8, 8), (4, 4, 4, 4), (4, 12)])
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(sizes):
    objective = IMM(Labels(CLASSES), label_dropout=0.4)
    assert objective.draws_for_whole_step
    network, batch = mlp(1), Batch(2 * randn(16, DIM), torch.arange(16) % CLASSES)
    whole, parts, start = objective(network, batch, generator(5)), [], 0
    for n in sizes:
        rows = slice(start, start + n)
        part = Batch(batch.x_1[rows], batch.cond[rows], start, 16)
        parts.append(objective(network, part, generator(5)).terms["moments"])
        start += n
    torch.testing.assert_close(torch.cat(parts), whole.terms["moments"], rtol=1e-12, atol=1e-12)


def test_both_answers_of_one_step_share_a_dropout_mask():
    network, x = mlp(1, dropout=0.3).train(), randn(8, DIM)
    objective = IMM(Labels(CLASSES), decrement=0.0, gap=1e-12)
    terms = objective.evaluate(network, Interpolant.between(x, x, full(0.5, 8), LABELS[:8]), full(0.9, 8))
    torch.testing.assert_close(terms.y_t, terms.y_r, rtol=1e-6, atol=1e-6)
    again = objective.evaluate(network, Interpolant.between(x, x, full(0.5, 8), LABELS[:8]), full(0.9, 8))
    assert not torch.allclose(terms.y_t, again.y_t)


def test_half_precision_answers_are_lifted():
    class Halved(torch.nn.Module):
        auxiliary_time = True

        def __init__(self):
            super().__init__()
            self.network = mlp(1).float()

        def forward(self, x, t, cond, r):
            return self.network(x, t, cond, r).bfloat16()

    x = randn(8, DIM).float()
    t, s = full(0.3, 8).float(), full(0.9, 8).float()
    terms = IMM(Labels(CLASSES)).evaluate(Halved(), Interpolant.between(x.flip(0), x, t, LABELS[:8]), s)
    assert all(value.dtype == torch.float32 for value in vars(terms).values())


def test_a_short_training_makes_the_data_in_one_and_in_four_jumps():
    torch.manual_seed(0)
    network = MLP(2, 64, 2, auxiliary_time=True).build()
    optimizer, rng = torch.optim.Adam(network.parameters(), 2e-3), generator(0)
    objective = IMM(Unconditional(), Uniform(), 8, decrement=0.3, label_dropout=0.0)
    for _ in range(250):
        x_1 = M + S * torch.randn(512, 2, generator=rng)
        optimizer.zero_grad()
        objective(network, Batch(x_1), rng).total.backward()
        optimizer.step()
    x_0 = torch.randn(4096, 2, generator=rng)
    for n in (1, 4):
        x = jumps(lambda x, t, r: network(x, t, None, r), x_0, uniform_times(n))
        assert x.mean().item() == pytest.approx(M, abs=0.2)
        assert x.std().item() == pytest.approx(S, abs=0.2)


# Errors


TWO, THEIRS = T[:2].repeat_interleave(4), FAR[:2].repeat_interleave(4)


def evaluate(t=TWO, s=THEIRS, cond=LABELS[:8], x_0=None, network=None):
    x_0 = randn(8, DIM, seed=1) if x_0 is None else x_0
    return IMM(Labels(CLASSES)).evaluate(network or mlp(1), Interpolant.between(x_0, randn(8, DIM), t, cond), s)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: evaluate(network=MLP(DIM, 8, 1, CLASSES).build()), "passes a second time r"),
        (lambda: evaluate(t=T[:1]), r"t has shape \(1,\), expected \(8,\)"),
        (lambda: evaluate(s=FAR[:4]), r"t \(8,\), s \(4,\)"),
        (lambda: evaluate(s=full(1.5, 8)), "s runs over"),
        (lambda: evaluate(t=full(0.9, 8), s=full(0.3, 8)), "expected t < s"),
        (lambda: evaluate(t=T[[0] * 7 + [1]]), "expected one t and one s in each group"),
        (lambda: evaluate(s=FAR[[0] * 7 + [4]], t=full(0.1, 8)), "expected one t and one s in each group"),
        (lambda: evaluate(cond=LABELS[:8] + 2), r"labels run over \[2, 5\]"),
        (lambda: evaluate(x_0=randn(8, 1)), r"x_0 \(8, 1\)"),
        (
            lambda: IMM(Labels(3), particles=3).evaluate(
                mlp(1), Interpolant.between(randn(8, DIM), randn(8, DIM), full(0, 8), LABELS[:8]), full(1, 8)
            ),
            "8 samples",
        ),
        (lambda: IMM(Labels(3))(mlp(1), Batch(randn(6, DIM), LABELS[:6]), generator()), "particles = 4"),
        (lambda: IMM(Labels(3))(mlp(1), Batch(randn(4, DIM), LABELS[:4], 2, 8), generator()), "from 2 on"),
        (lambda: IMM(Labels(3), particles=0), "particles = 0"),
        (lambda: IMM(Labels(3), decrement=-1.0), "decrement = -1.0"),
        (lambda: IMM(Labels(3), gap=0.0), "gap = 0.0"),
        (lambda: IMM(Labels(3), a=0.5), "a = 0.5"),
        (lambda: IMM(Labels(3), label_dropout=1.0), "label_dropout = 1.0"),
        (lambda: IMM(Unconditional(), label_dropout=0.2), "label_dropout = 0.2, expected 0 with"),
    ],
)
def test_an_impossible_request_is_an_error_that_names_it(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_what_may_be_asked_for():
    objective = IMM(Labels(3), particles=1, decrement=0.0, label_dropout=0.0)
    assert isinstance(objective, Objective)
    assert from_json(to_json(objective)) == objective
    assert (objective.task, objective.learns_jumps, objective.learns_shortcut) == (AuxiliaryTime(), True, True)
    assert IMM(Labels(3)) == IMM(Labels(3), Uniform(0.006, 1.0), 4, 160 / 4096, 1e-4, 1.0, 5.0, 0.1)

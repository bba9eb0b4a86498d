"""AYF-EMD: zero at the exact flow map, equal in value and gradient to its equations written out slowly; its warm-up."""

import pytest
import torch

from facm.core.component import ComponentError
from facm.core.serialize import from_json, to_json
from facm.core.types import Batch
from facm.derivative import FiniteDifference, NoGraph, OpLevel, WholeNetwork
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.align_your_flow import AlignYourFlow
from facm.runs.config import Run
from facm.sampling.methods import Jumps
from facm.training.checks import check
from tests.core.core_parts import generator, randn
from tests.objectives import objective_parts
from tests.objectives.objective_parts import CLASSES, DIM, M, S, check_parts, instantaneous, spread
from tests.training.run_parts import flow_run

UNGUIDED = TeacherVelocity(NO_GUIDANCE)


def mlp(seed, auxiliary_time=True):
    return objective_parts.mlp(seed, auxiliary_time, scale=1.5)


class Exact(torch.nn.Module):
    """(x_r - x_t) / (r - t) along the exact flow, where x_r = r M + (x_t - t M) spread_r / spread_t."""

    auxiliary_time = True

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, x, t, cond=None, r=None):
        moved = r[:, None] * M + (x - t[:, None] * M) * (spread(r) / spread(t))[:, None]
        return self.factor * (moved - x) / (r - t)[:, None]


@pytest.mark.parametrize("derivative", [OpLevel(), NoGraph(), WholeNetwork(), FiniteDifference(1e-4)], ids=str)
@pytest.mark.parametrize("normalise", [0.1, None])
def test_the_exact_flow_map_has_zero_loss_once_it_is_warmed_up(normalise, derivative):
    batch = Batch(M + S * randn(256, DIM))
    whole = AlignYourFlow(Unconditional(), UNGUIDED, warmed_up=1.0, normalise=normalise, derivative=derivative)

    def residual(objective, network):
        return objective(network, batch, generator(), instantaneous).terms["residual_rms"].max()

    assert residual(whole, Exact()) < 1e-5
    assert residual(whole, Exact(1.01)) > 1e-3
    assert residual(AlignYourFlow(Unconditional(), UNGUIDED, derivative=derivative), Exact()) > 1e-4  # 0.99 of it


def test_without_its_derivative_it_is_flow_matching():
    """At the start of the warm-up the tangent is F - v."""
    objective = AlignYourFlow(Labels(CLASSES), UNGUIDED, normalise=None)
    network, teacher, point, y, r = mlp(1), mlp(2, False), *points()
    terms = objective.evaluate(network, point, r, teacher, 0.0)
    v = teacher(point.x_t, point.t, y)
    torch.testing.assert_close(terms.v_tar, v)


def points():
    t = torch.tensor([0.03, 0.124, 0.125, 0.31, 0.57, 0.8, 0.801, 0.97], dtype=torch.float64)
    y = torch.arange(8) % CLASSES
    point = Interpolant.between(randn(8, DIM, seed=4), 2 * randn(8, DIM, seed=3), t, y)
    return point, y, t + (1 - t) * torch.tensor([1, 0.5, 0.2, 1, 0.9, 0.1, 1, 0.5], dtype=torch.float64)


def slow(network, teacher, point, y, r, warm, c, w, h=1e-5):
    losses = []
    for i in range(len(point)):
        x, s, end, label = point.x_t[i : i + 1], point.t[i].item(), r[i].item(), y[i : i + 1]

        def ask(f, x, *times, label=label):
            t, *rest = (torch.full((1,), time, dtype=x.dtype) for time in times)
            return f(x, t, label, *rest)

        with torch.no_grad():
            v, null = ask(teacher, x, s), torch.tensor([CLASSES])
            if 0.125 <= s <= 0.8:
                v_u = ask(teacher, x, s, label=null)
                v = v_u + w * (v - v_u)
            dF = (ask(network, x + h * v, s + h, end) - ask(network, x - h * v, s - h, end)) / (2 * h)
            g = ask(network, x, s, end) - v - warm * (end - s) * dF
            if c is not None:
                g = g / ((g**2).sum() / DIM).sqrt().add(c)
            target = ask(network, x, s, end) - g
        losses.append(((ask(network, x, s, end) - target) ** 2).sum() / DIM)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("derivative", [OpLevel(), WholeNetwork()], ids=str)
@pytest.mark.parametrize(("warm", "c"), [(0.99, 0.1), (0.3, 0.1), (0.99, None), (1.0, 2.0)])
def test_value_and_gradient_match_the_equations_written_slowly(warm, c, derivative):
    network, teacher, (point, y, r) = mlp(1).train(), mlp(2, False), points()
    velocity = TeacherVelocity(Guidance(1.75, 0.125, 0.8))
    objective = AlignYourFlow(Labels(CLASSES), velocity, warmed_up=warm, normalise=c, derivative=derivative)
    terms = objective.evaluate(network, point, r, teacher)
    expected = slow(network, teacher, point, y, r, warm, c, 1.75)
    torch.testing.assert_close(terms.loss().total, expected, rtol=1e-6, atol=0)
    parameters = list(network.parameters())
    found = torch.autograd.grad(terms.loss().total, parameters)
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters), rtol=1e-5, atol=1e-8)
    for name in ("v", "dF", "g", "v_tar"):
        assert not getattr(terms, name).requires_grad


def test_the_derivative_is_warmed_up_in_proportion_to_the_images_seen():
    objective = AlignYourFlow(Labels(CLASSES), UNGUIDED, warmup_images=1000)
    assert [objective.warmth(n) for n in (0, 250, 990, 1000, 10**9)] == [0, 0.25, 0.99, 0.99, 0.99]
    assert AlignYourFlow(Labels(CLASSES), UNGUIDED, warmup_images=0, warmed_up=1.0).warmth(0) == 1
    batch, args = Batch(2 * randn(16, DIM), torch.arange(16) % CLASSES), (mlp(1), mlp(2, False))
    at = objective.at(250)
    assert (
        at(args[0], batch, generator(5), args[1]).total == objective(args[0], batch, generator(5), args[1], 0.25).total
    )
    for name in ("condition", "velocity", "task", "derivative", "draws_for_whole_step"):
        assert getattr(at, name) == getattr(objective, name)


def test_lengths_of_jumps_are_drawn_and_their_starts_are_uniform_in_what_is_left():
    """Alg. 1: |r - t| = sigmoid(N(-0.8, 1)); its median is sigmoid(-0.8) = 0.31."""
    seen = []

    class Asked(Exact):
        def forward(self, x, t, cond=None, r=None):
            seen.append((t, r))
            return super().forward(x, t, cond, r)

    objective = AlignYourFlow(Unconditional(), UNGUIDED, derivative=FiniteDifference(1e-3))
    objective(Asked(), Batch(randn(4000, DIM)), generator(), instantaneous)
    t, r = next((t, r) for t, r in seen if t.requires_grad is False)
    apart = (r - t).sort().values
    assert bool((apart > -2e-3).all())
    assert bool((r <= 1).all())
    assert apart[2000].item() == pytest.approx(0.310, abs=0.02)
    share = t / (1 - (r - t))
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.std().item() == pytest.approx(12**-0.5, abs=0.02)


@pytest.mark.parametrize("sizes", [(4, 12), (8, 8)])
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(sizes):
    check_parts(AlignYourFlow(Labels(CLASSES), UNGUIDED, label_dropout=0.3), mlp(1), mlp(2, False), sizes)


def test_from_scratch_the_velocity_is_the_datas():
    objective, (point, _, r) = AlignYourFlow(Labels(CLASSES), DataVelocity()), points()
    torch.testing.assert_close(objective.evaluate(mlp(1), point, r).v, point.x_1 - point.x_0)


def test_defaults_and_what_it_says_about_itself():
    objective = AlignYourFlow(Labels(CLASSES))
    assert (objective.warmed_up, objective.normalise) == (0.99, 0.1)
    interface = objective.interface
    assert interface.learns_shortcut
    assert interface.learns_jumps
    assert not interface.learns_flow
    assert from_json(to_json(objective)) == objective


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"warmed_up": 1.5}, "warmed_up = 1.5"),
        ({"normalise": 0.0}, "normalise = 0.0"),
        ({"interval": 3}, "interval = 3"),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(options, named):
    with pytest.raises(ComponentError, match=f"^AlignYourFlow: {named}, expected"):
        AlignYourFlow(Labels(CLASSES), **options)


def test_a_network_without_a_second_time_is_an_error():
    point, _, r = points()
    with pytest.raises(ValueError, match="auxiliary_time"):
        AlignYourFlow(Labels(CLASSES), UNGUIDED).evaluate(mlp(1, False), point, r, mlp(2, False))
    run: Run = flow_run(objective=AlignYourFlow(Labels(2), DataVelocity()))
    with pytest.raises(ValueError, match="auxiliary_time"):
        check(run)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_short_training_makes_jumps_along_the_flow(steps, trained):
    """Gaussian data from the exact flow: any number of jumps ends where the flow does."""
    z = torch.randn(2000, 2, generator=generator(3))
    x = z
    for k in range(steps):
        t, r = (torch.full((len(x),), (k + j) / steps) for j in (0, 1))
        with torch.no_grad():
            x = x + trained(x, t, r=r) / steps
    right = M + z * S  # x_1 = M + (x_0 - 0) spread(1) / spread(0)
    assert (x - right).square().mean().sqrt() < 0.08
    assert Jumps(steps).nfe == steps


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    network = MLP(2, 64, 2, 0, auxiliary_time=True).build()
    objective = AlignYourFlow(Unconditional(), UNGUIDED, warmup_images=256 * 300)
    optimizer, rng = torch.optim.Adam(network.parameters(), 2e-3), generator(1)
    for step in range(2000):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / 2000)
        x_1 = M + S * torch.randn(256, 2, generator=rng)
        optimizer.zero_grad()
        objective.at(step * 256)(network, Batch(x_1), rng, instantaneous).total.backward()
        optimizer.step()
    return network

"""Phases: the end time in objective, times, weights and sampler, held against Gaussian data where all is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from facm.core.component import ComponentError
from facm.core.types import Batch
from facm.flow import ArctanLogNormal, Phases, Shifted, Squeezed, Uniform
from facm.flow.conditions import Unconditional
from facm.flow.guidance import NO_GUIDANCE
from facm.flow.interpolant import Interpolant
from facm.flow.velocity import TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.facm import FACM

MEAN, STD = 0.7, 0.4


def spread(t):
    """Standard deviation of x_t for data N(MEAN, STD^2)."""
    return ((1 - t) ** 2 + (t * STD) ** 2).sqrt()


def flow(x, t):
    """The marginal velocity at x (B, d), t (B, 1)."""
    return MEAN + (t * STD**2 - (1 - t)) / spread(t) ** 2 * (x - t * MEAN)


def carried(x, t, end):
    """Where the flow takes x from t to end: quantiles go to quantiles."""
    return end * MEAN + spread(end) / spread(t) * (x - t * MEAN)


class Exact(torch.nn.Module):
    """The velocity of the flow at c_FM, and the average velocity to the end of the phase at c_CM."""

    auxiliary_time = False

    def __init__(self, phases):
        super().__init__()
        self.phases = phases

    def forward(self, x, t, cond=None):
        end = self.phases.end(t)[:, None].to(x)
        t = t[:, None]
        anchor = t > 1
        now = torch.where(anchor, 2 - t, t)
        left = torch.where(anchor, 1.0, end - now)
        jump = (carried(x, now, end) - x) / left
        return torch.where(anchor, flow(x, now), jump)


class Teacher(torch.nn.Module):
    auxiliary_time = False

    def forward(self, x, t, cond=None):
        return flow(x, t[:, None])


def point(t, n=64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x_0 = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    x_1 = MEAN + STD * torch.randn(n, 3, generator=rng, dtype=torch.float64)
    return Interpolant.between(x_0, x_1, t)


BOUNDS = [(0.0, 1.0), (0.0, 0.125), (0.125, 1.0), (0.0, 0.25, 0.5, 1.0)]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("kind", [FACM, ContinuousCM])
def test_the_exact_average_velocity_to_any_end_is_the_fixed_point(bounds, kind):
    phases = Phases(bounds)
    objective = kind(Unconditional(), TeacherVelocity(NO_GUIDANCE), phases=phases)
    low, high = bounds[0], bounds[-1]
    t = low + (high - low) * torch.linspace(0.01, 0.97, 64, dtype=torch.float64)
    terms = objective.evaluate(Exact(phases), point(t), Teacher())
    assert terms.g.abs().max() < 1e-12
    assert terms.L_CM.max() < 1e-12
    # The same target by hand, with the end time written out.
    end = torch.tensor([min(b for b in bounds[1:] if b > value) for value in t.tolist()], dtype=t.dtype)
    by_hand = flow(point(t).x_t, t[:, None]) + (end - t)[:, None] * terms.dF
    assert torch.allclose(terms.v_bar, by_hand, atol=1e-13)


def test_another_end_is_not_the_fixed_point():
    objective = FACM(Unconditional(), TeacherVelocity(NO_GUIDANCE), phases=Phases((0.0, 0.5, 1.0)))
    t = torch.linspace(0.02, 0.45, 64, dtype=torch.float64)
    assert objective.evaluate(Exact(Phases()), point(t), Teacher()).g.abs().mean() > 1e-2


def test_weights_run_over_the_phase():
    t = torch.tensor([0.05, 0.1, 0.125, 0.5], dtype=torch.float64)
    objective = FACM(Unconditional(), TeacherVelocity(NO_GUIDANCE), phases=Phases((0.0, 0.125, 1.0)))
    terms = objective.evaluate(Teacher(), point(t, 4), Teacher())
    s = torch.tensor([0.4, 0.8, 0.0, 3 / 7], dtype=torch.float64)
    assert torch.allclose(terms.L_CM, torch.cos(torch.pi / 2 * s) * terms.L_norm)
    step = (terms.F_CM - terms.v_tar) / terms.g.clamp(-1, 1)
    assert torch.allclose(step, (1 - s.sqrt())[:, None].expand_as(step), atol=1e-9)


def test_ends_of_phases():
    t = torch.tensor([0.0, 0.1, 0.125, 0.6, 0.9999, 1.0])
    assert Phases().end(t).tolist() == [1.0] * 6
    assert Phases((0.0, 0.125, 1.0)).end(t).tolist() == [0.125, 0.125, 1.0, 1.0, 1.0, 1.0]
    for bad in ((0.0,), (0.5, 0.5), (1.0, 0.0), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(ComponentError, match="Phases: bounds = "):
            Phases(bad)


def test_times_lie_in_the_phases_and_are_the_same_draws():
    time = ArctanLogNormal(-0.8, 1.6)
    assert Phases().times(time) is time
    squeezed = Phases((0.125, 0.5)).times(time)
    t, u = (d.sample(1000, torch.Generator().manual_seed(3)) for d in (squeezed, time))
    assert torch.equal(t, 0.125 + 0.375 * u)
    assert isinstance(squeezed, Squeezed)


def test_one_phase_is_the_papers_target():
    p, objective = point(torch.linspace(0.01, 0.97, 64)), FACM(Unconditional(), TeacherVelocity(NO_GUIDANCE))
    terms = objective.evaluate(Teacher(), p, Teacher())
    t = p.t[:, None]
    assert torch.equal(terms.v_bar, terms.v + (1 - t) * terms.dF)
    assert torch.equal(terms.v_tar, terms.F_CM - (1 - t**0.5) * terms.g.clamp(-1, 1))
    drawn = objective(Teacher(), Batch(p.x_1), torch.Generator().manual_seed(0), Teacher()).total
    again = Interpolant.draw(Batch(p.x_1), objective.time, Unconditional(), 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, objective.evaluate(Teacher(), again, Teacher()).loss().total)


def test_a_shift_is_that_of_samplers_and_the_inverse_of_the_families():
    t, u = (d.sample(1000, torch.Generator().manual_seed(3)) for d in (Shifted(Uniform(), 0.2), Uniform()))
    sigma = 1 - u
    assert torch.allclose(1 - t, 5 * sigma / (1 + 4 * sigma), atol=1e-6)
    assert torch.equal(
        Shifted(Uniform(), 1.0).sample(9, torch.Generator().manual_seed(1)),
        Uniform().sample(9, torch.Generator().manual_seed(1)),
    )


@pytest.mark.parametrize("bounds", BOUNDS)
def test_value_and_gradient_of_a_slow_transcription(bounds):
    torch.manual_seed(0)
    network = MLP(3, width=8, depth=1).build().double()
    objective = FACM(Unconditional(), TeacherVelocity(NO_GUIDANCE), phases=Phases(bounds))
    low, high = bounds[0], bounds[-1]
    p = point(low + (high - low) * torch.tensor([0.02, 0.3, 0.55, 0.8, 0.97], dtype=torch.float64), 5)
    objective.evaluate(network, p, Teacher()).loss().total.backward()
    found = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    total = 0.0
    for i in range(5):
        x, t = p.x_t[i : i + 1], p.t[i : i + 1]
        end = min(bound for bound in bounds[1:] if bound > float(t))
        begin = max(bound for bound in bounds if bound <= float(t))
        s = (float(t) - begin) / (end - begin)
        v = flow(x, t[:, None])
        F, dF = torch.func.jvp(network, (x, t), (v, torch.ones_like(t)))
        g = F.detach() - (v + (end - t[:, None]) * dF.detach())
        v_tar = F.detach() - (1 - math.sqrt(s)) * g.clamp(-1, 1)
        L_CM = math.cos(math.pi / 2 * s) * objective.shortcut(F, v_tar)
        total = total + (objective.anchor(network(x, 2 - t), v) + L_CM)[0] / 5
    total.backward()
    assert float(total.detach()) == pytest.approx(
        float(objective.evaluate(network, p, Teacher()).loss().total.detach()), rel=1e-10
    )
    for parameter, grad in zip(network.parameters(), found, strict=True):
        assert torch.allclose(parameter.grad, grad, rtol=1e-8, atol=1e-12)


def test_a_step_that_ends_where_its_phase_ends_changes_nothing_there():
    network = MLP(3, width=8, depth=1).build()
    for bounds in BOUNDS:
        phases = Phases(bounds)
        for begin, end in pairwise(bounds):
            t = torch.full((4,), end - 1e-6 * (end - begin))
            x = torch.randn(4, 3)
            f = x + (phases.end(t) - t)[:, None] * network(x, t)
            assert torch.allclose(f, x, atol=1e-5)

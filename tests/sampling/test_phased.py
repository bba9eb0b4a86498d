"""Sampling phase by phase, on Gaussian data where the exact jumps are known."""

from __future__ import annotations

import math

import pytest
import torch

from facm.core.objective import NetworkInterface
from facm.flow.conditions import Unconditional
from facm.sampling import Consistency, Euler, Phased, default_method
from facm.sampling.solvers import consistency, phased, phased_times, spread_over_phases
from tests.flow.test_phases import MEAN, STD, carried

BOUNDS = (0.0, 0.125, 0.5, 1.0)


def jump(bounds):
    """The exact average velocity from t to the end of its phase."""

    def F(x, t):
        now = t[:1].double()
        end = torch.tensor(min(b for b in bounds if b > float(now) + 1e-9), dtype=torch.float64)
        return (carried(x, now, end) - x) / (end - now)

    return F


def normal(n, seed):
    return torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("times", [[0.0, 0.125, 0.5], [0.0, 0.05, 0.125, 0.2, 0.4, 0.5, 0.9]])
def test_it_is_exact_for_the_exact_network(times):
    x = phased(jump(BOUNDS), normal(400_000, 0), times, BOUNDS, lambda i: normal(400_000, i))
    assert float(x.mean()) == pytest.approx(MEAN, abs=4e-3)
    assert float(x.std()) == pytest.approx(STD, abs=4e-3)


def test_a_step_for_each_phase_is_the_flow_and_draws_nothing():
    x_0 = normal(100, 0)
    x = phased(jump(BOUNDS), x_0, [0.0, 0.125, 0.5], BOUNDS)
    assert torch.allclose(x, MEAN + STD * x_0)


def test_renoising_inside_a_phase_by_hand():
    z = {1: normal(5, 1), 2: normal(5, 2)}
    x_0, F, bounds = normal(5, 0), lambda x, t: 2 * x + t[:, None], (0.0, 0.5, 1.0)
    x = phased(F, x_0, [0.0, 0.2, 0.5], bounds, z.__getitem__)
    x_end = x_0 + 0.5 * (2 * x_0)
    kept = (1 - 0.8) / (1 - 0.5)
    at = kept * x_end + math.sqrt(0.8**2 - kept**2 * 0.5**2) * z[1]
    at = at + 0.3 * (2 * at + 0.2)
    assert torch.allclose(x, at + 0.5 * (2 * at + 0.5))


def test_one_phase_is_consistency_sampling():
    F, times, z = jump((0.0, 1.0)), [0.0, 0.3, 0.8], lambda i: normal(50, i)
    one, other = phased(F, normal(50, 0), times, (0.0, 1.0), z), consistency(F, normal(50, 0), times, z)
    assert torch.allclose(one, other, atol=1e-14)


def test_schedules():
    assert [spread_over_phases(n, 2) for n in (2, 3, 8)] == [(1, 1), (1, 2), (4, 4)]
    assert phased_times((2, 2), (0.0, 0.125, 1.0)) == [0.0, 0.0625, 0.125, 0.5625]
    assert Phased(3, (0.0, 0.125, 1.0), steps=(2, 1)).schedule() == [0.0, 0.0625, 0.125]
    assert Phased(3, (0.0, 0.125, 1.0), times=(0.0, 0.125, 0.3)).schedule() == [0.0, 0.125, 0.3]


@pytest.mark.parametrize(
    ("times", "bounds", "message"),
    [
        ([0.0, 0.3], (0.0, 0.5, 1.0), r"times = \[0.0, 0.3\], expected a step at 0.5, where a phase begins"),
        ([0.0, 0.5], (0.0, 0.5), r"bounds = \(0.0, 0.5\), expected times that increase from 0 to 1"),
    ],
)
def test_a_phase_without_a_step_is_refused(times, bounds, message):
    with pytest.raises(ValueError, match=message):
        phased(jump(BOUNDS), normal(2, 0), times, bounds)


def test_noise_is_needed_only_inside_phases():
    with pytest.raises(ValueError, match="3 steps in 2 phases need fresh_noise"):
        phased(jump((0.0, 0.5, 1.0)), normal(2, 0), [0.0, 0.2, 0.5], (0.0, 0.5, 1.0))


def interface(*bounds):
    return NetworkInterface(Unconditional(), learns_shortcut=True, bounds=bounds)


def test_each_student_is_sampled_by_its_own_method():
    assert default_method(interface(0.0, 1.0), 4) == Consistency(4)
    assert default_method(interface(0.0, 0.125, 1.0), 4) == Phased(4, (0.0, 0.125, 1.0))
    Phased(4, (0.0, 0.125, 1.0)).check(interface(0.0, 0.125, 1.0))
    for method, other, message in (
        (
            Consistency(1),
            interface(0.0, 0.125, 1.0),
            r"ends of its phases, .*; expected Phased\(2, ",
        ),
        (Phased(2, (0.0, 0.5, 1.0)), interface(0.0, 0.125, 1.0), r"and the network has learned \(0.0, 0.125, 1.0\)"),
        (Phased(2, (0.0, 0.5, 1.0)), interface(0.0, 0.5), "learned those from 0 to 0.5: it is one of several"),
        (Consistency(1), interface(0.125, 1.0), "learned those from 0.125 to 1: it is one of several"),
        (Euler(8), interface(0.0, 0.125), "learned those from 0 to 0.125: it is one of several"),
        (Phased(2), NetworkInterface(Unconditional()), "ends of phases, which the network has not learned"),
    ):
        with pytest.raises(ValueError, match=message):
            method.check(other)
    with pytest.raises(ValueError, match="nfe = 1, expected at least 2, one evaluation for each phase"):
        default_method(interface(0.0, 0.125, 1.0), 1)
    with pytest.raises(ValueError, match=r"nfe = 4 needs all times from 0 to 1, .* from 0 to 0.125: it is one of"):
        default_method(interface(0.0, 0.125), 4)

"""Distributions of the training time, against their quantiles in closed form."""

import math
from statistics import NormalDist

import pytest
import torch

from facm.flow.times import ArctanLogNormal, LogitNormal, Uniform
from tests.core.core_parts import generator

DISTRIBUTIONS = [Uniform(), Uniform(0.2, 0.6), LogitNormal(0.4, 0.7), ArctanLogNormal(-1.0, 1.4)]


def quantile(time, q):
    """In closed form. Both normal families are decreasing in z."""
    z = NormalDist().inv_cdf(1 - q)
    if isinstance(time, Uniform):
        return time.low + q * (time.high - time.low)
    if isinstance(time, LogitNormal):
        return 1 / (1 + math.exp(-(time.mean - time.std * z)))
    return 1 - 2 / math.pi * math.atan(math.exp(time.mean + time.std * z))


@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_sampled_times_have_the_distributions_quantiles(time):
    t = time.sample(40_000, generator())
    assert t.shape == (40_000,)
    assert t.dtype == torch.float32
    assert t.min() >= 0
    assert t.max() <= 1
    for q in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98):
        assert t.quantile(q).item() == pytest.approx(quantile(time, q), abs=0.01)


@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_times_are_a_function_of_the_generator_alone(time):
    torch.manual_seed(1)
    first, state = time.sample(16, generator(3)), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, time.sample(16, generator(3)))
    assert not torch.equal(first, time.sample(16, generator(4)))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_median_of_the_papers_times_is_nearer_to_data():
    assert ArctanLogNormal(-0.8, 1.6).from_normal(torch.zeros(1)).item() == pytest.approx(0.7312, abs=1e-4)
    assert ArctanLogNormal() == ArctanLogNormal(-0.8, 1.6)
    assert LogitNormal(0.8, 1.6).from_normal(torch.zeros(1)).item() == pytest.approx(1 / (1 + math.exp(-0.8)))


@pytest.mark.parametrize("time", DISTRIBUTIONS[2:])
def test_a_positive_normal_leads_towards_noise(time):
    z = torch.linspace(-2, 2, 5)
    expected = [quantile(time, NormalDist().cdf(-value)) for value in z.tolist()]
    assert time.from_normal(z).tolist() == pytest.approx(expected, rel=1e-5)
    assert expected == sorted(expected, reverse=True)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Uniform(0.5, 0.5), "low = 0.5, expected less than high = 0.5"),
        (lambda: Uniform(-0.1, 0.5), "low = -0.1"),
        (lambda: Uniform(0.1, 1.5), "high = 1.5"),
        (lambda: LogitNormal(0, 0), "LogitNormal: std = 0"),
        (lambda: ArctanLogNormal(0, -1), "ArctanLogNormal: std = -1"),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(make, named):
    with pytest.raises(ValueError, match=named):
        make()

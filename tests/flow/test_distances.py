"""Distances, each against a slow loop."""

import math

import pytest
import torch

from facm.flow.distances import L2, L2Cosine, NormL2, Scaled, cosine_distance, mean_square
from tests.core.core_parts import randn


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: NormL2(p=-0.1), "NormL2: p = -0.1"),
        (lambda: NormL2(c=0), "c = 0"),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def slow_mean_square(a, b):
    return sum((p - q) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / a.numel()


def slow_cosine(a, b):
    a, b = a.flatten().tolist(), b.flatten().tolist()
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(q * q for q in b))


def slow_distance(a, b, flat):
    cosines = [slow_cosine(a, b) if flat else slow_cosine(a[:, i, j], b[:, i, j]) for i in range(3) for j in range(2)]
    return slow_mean_square(a, b) + sum(1 - c for c in cosines) / len(cosines)


@pytest.mark.parametrize(("channels", "flat"), [(1, True), (3, True), (4, False), (5, False)])
def test_cosine_is_over_the_channels_from_four_on_and_flat_below(channels, flat):
    a, b = randn(4, channels, 3, 2, seed=1), randn(4, channels, 3, 2, seed=2)
    expected = torch.tensor([slow_distance(p, q, flat) for p, q in zip(a, b, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(L2Cosine()(a, b), expected)
    torch.testing.assert_close(L2Cosine(flat=flat)(a, b), expected)
    if channels > 1:
        assert not torch.allclose(L2Cosine(flat=not flat)(a, b), expected)


@pytest.mark.parametrize("flat", [False, True])
def test_cosine_distance_follows_the_switch_at_any_number_of_channels(flat):
    a, b = randn(4, 5, 3, 2, seed=1), randn(4, 5, 3, 2, seed=2)
    expected = [slow_distance(p, q, flat) - slow_mean_square(p, q) for p, q in zip(a, b, strict=True)]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(cosine_distance(a, b, flat), expected)
    torch.testing.assert_close(L2Cosine(flat=flat)(a, b), expected + mean_square(a, b))


def test_cosine_distance_is_none_along_and_two_against():
    a = randn(3, 4, 2, 2)
    torch.testing.assert_close(cosine_distance(3 * a, a, flat=False), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(cosine_distance(-a, a, flat=True), torch.full((3,), 2.0, dtype=torch.float64))


def test_mean_square_is_a_mean_over_the_sample():
    a, b = randn(4, 2, 3, seed=1), randn(4, 2, 3, seed=2)
    expected = torch.tensor([slow_mean_square(p, q) for p, q in zip(a, b, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(mean_square(a, b), expected)
    torch.testing.assert_close(L2()(a, b), expected)


@pytest.mark.parametrize(("p", "c"), [(0.5, 1e-3), (1.0, 1e-3), (0.0, 1e-3), (0.5, 0.3)])
def test_normalised_distance_and_its_gradient_with_the_weight_frozen(p, c):
    a, b = (0.2 * randn(4, 3, seed=1)).requires_grad_(), 0.2 * randn(4, 3, seed=2)
    d = NormL2(p, c)(a, b)
    d.sum().backward()
    for i in range(4):
        e = slow_mean_square(a[i], b[i])
        assert d[i].item() == pytest.approx(e / (e + c) ** p, rel=1e-12)
        expected = 2 * (a[i] - b[i]).detach() / 3 / (e + c) ** p
        torch.testing.assert_close(a.grad[i], expected)
    assert NormL2() == NormL2(0.5, 1e-3)


@pytest.mark.parametrize("distance", [L2(), L2Cosine(), NormL2(0.5)])
@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_a_scaled_distance_and_its_gradient_are_so_many_times_it(distance, weight):
    a, b = randn(4, 5, 2, seed=1).requires_grad_(), randn(4, 5, 2, seed=2)
    found, plain = Scaled(distance, weight)(a, b), distance(a, b)
    assert found.shape == (4,)
    torch.testing.assert_close(found, weight * plain)
    own, theirs = (torch.autograd.grad(d.sum(), a, retain_graph=True)[0] for d in (found, plain))
    torch.testing.assert_close(own, weight * theirs)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_a_weight_that_leaves_no_distance_is_an_error(weight):
    with pytest.raises(ValueError, match=r"Scaled: weight = .*, expected a number within \[1e-12"):
        Scaled(L2(), weight)


@pytest.mark.parametrize("distance", [L2(), L2Cosine(), L2Cosine(flat=True), NormL2(), Scaled(L2(), 2.0)])
def test_distances_refuse_to_broadcast(distance):
    with pytest.raises(ValueError, match="expected equal shapes"):
        distance(torch.zeros(2, 4, 3), torch.zeros(2, 4, 1))

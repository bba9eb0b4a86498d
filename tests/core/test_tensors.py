"""Shapes, times and precision: what is expanded, what is refused and what is lifted."""

import math

import pytest
import torch

from facm.core.tensors import at_least_float32, check_same_shape, check_time, expand


def test_expand_adds_axes_behind_the_batch():
    t, x = torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, 4, 5, 6)
    assert expand(t, x).shape == (3, 1, 1, 1)
    assert expand(t, torch.zeros(3, 2)).shape == (3, 1)
    assert torch.equal(expand(t, x)[:, 0, 0, 0], t)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (1, 3), (4,)])
def test_a_time_of_a_wrong_shape_is_an_error_and_no_broadcast(shape):
    with pytest.raises(ValueError, match=r"t has shape .*expected \(3,\)"):
        check_time(torch.full(shape, 0.5), torch.zeros(3, 2))


@pytest.mark.parametrize("bad", [-1e-3, 1.001, math.nan])
def test_a_time_outside_the_unit_interval_is_an_error_that_names_it(bad):
    with pytest.raises(ValueError, match=r"s runs over .*\[0, 1\]"):
        check_time(torch.tensor([0.5, bad, 0.5]), torch.zeros(3, 2), "s")


def test_the_ends_of_the_unit_interval_are_times_and_high_moves_the_end():
    check_time(torch.tensor([0.0, 1.0]), torch.zeros(2, 2))
    check_time(torch.tensor([0.0, 2.0]), torch.zeros(2, 2), high=2.0)
    check_time(torch.zeros(0), torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"\[0, 2\]"):
        check_time(torch.tensor([2.1]), torch.zeros(1, 2), high=2.0)


def test_unequal_shapes_are_named_in_the_error():
    check_same_shape(a=torch.zeros(2, 3), b=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"a \(2, 3\), b \(2, 1\)"):
        check_same_shape(a=torch.zeros(2, 3), b=torch.zeros(2, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_is_lifted_to_float32_and_nothing_is_lowered(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == expected

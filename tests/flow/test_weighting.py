"""Weights of Table 4, against their formulas."""

import math

import pytest
import torch

from facm.flow.weighting import Cosine, One, OneMinusPower


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: OneMinusPower(0), "OneMinusPower: p = 0"),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_weights_are_those_of_table_4():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for i, s in enumerate(t.tolist()):
        assert One()(t)[i].item() == 1
        assert OneMinusPower(0.5)(t)[i].item() == pytest.approx(1 - math.sqrt(s))
        assert OneMinusPower(2.0)(t)[i].item() == pytest.approx(1 - s * s)
        assert Cosine()(t)[i].item() == pytest.approx(math.cos(math.pi * s / 2), abs=1e-12)
    assert OneMinusPower() == OneMinusPower(0.5)

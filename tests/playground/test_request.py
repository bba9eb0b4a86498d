"""What a page may ask for."""

import math

import pytest

from facm.playground.request import MOST_SEED, Request, whole


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 10**9}, "images = 1000000000, expected an integer from 1 to 16"),
        ({"images": 0}, "images = 0, expected an integer from 1 to 16"),
        ({"images": True}, "images = True, expected an integer"),
        ({"seed": -1}, "seed = -1, expected an integer from 0"),
        ({"other_seed": MOST_SEED + 1}, "other_seed = 2147483648, expected"),
        ({"steps": 9}, "steps = 9, expected an integer from 1 to 8"),
        ({"steps": 1.5}, "steps = 1.5, expected an integer"),
        ({"teacher_steps": 101}, "teacher_steps = 101, expected an integer from 0 to 100"),
        ({"sampler": "__import__"}, "sampler = '__import__', expected one of auto"),
        ({"mix": math.nan}, "mix = nan, expected a number from 0 to 1"),
        ({"mix": 1.01}, "mix = 1.01, expected"),
        ({"label": "7"}, "label = '7', expected a class"),
        ({"prompt": "x" * 2**20}, "prompt of 1,048,576 characters, expected at most 1,000"),
    ],
)
def test_what_is_out_of_bounds_is_named(wrong, message):
    with pytest.raises(ValueError, match="expected") as error:
        Request(**wrong)
    assert message in str(error.value)


def test_a_number_of_a_form_is_whole():
    assert [whole(value, "seed") for value in (3, 3.0, "3")] == [3, 3, 3]
    for value in (None, "x", 3.5, math.inf, math.nan, [1]):
        with pytest.raises(ValueError, match=r"seed = .* expected an integer"):
            whole(value, "seed")

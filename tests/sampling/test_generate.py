"""How many samples can be asked for."""

import pytest

from facm.sampling.generate import blocks


@pytest.mark.parametrize(("n", "words"), [(0, "n = 0, expected at least one"), (10**30, "expected at most 100000000")])
def test_a_number_of_samples_that_cannot_be_is_named(n, words):
    with pytest.raises(ValueError, match=words):
        blocks(n)

"""Seeds."""

import pytest

from facm.core.rng import derive


def test_seeds_are_a_function_of_every_part_and_of_their_order():
    assert derive(1, 2, 3) == derive(1, 2, 3)
    assert len({derive(1, 2, 3), derive(3, 2, 1), derive(1, 2), derive(1, 2, 4), derive(0, 2, 3)}) == 5
    assert all(0 <= derive(i) < 2**63 for i in range(200))
    assert max(derive(i) for i in range(200)) > 2**62
    with pytest.raises(ValueError, match=r"\(1, -2\)"):
        derive(1, -2)

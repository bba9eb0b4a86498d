"""Seeds, and the state of the global generators."""

import json
import random

import numpy as np
import pytest
import torch

from facm.core.rng import borrowed_generators, derive, global_random_state, set_global_random_state


def test_seeds_are_a_function_of_every_part_and_of_their_order():
    assert derive(1, 2, 3) == derive(1, 2, 3)
    assert len({derive(1, 2, 3), derive(3, 2, 1), derive(1, 2), derive(1, 2, 4), derive(0, 2, 3)}) == 5
    assert all(0 <= derive(i) < 2**63 for i in range(200))
    assert max(derive(i) for i in range(200)) > 2**62
    with pytest.raises(ValueError, match=r"\(1, -2\)"):
        derive(1, -2)


def draws():
    """Python and numpy draw normals in pairs and keep the second one."""
    normals = random.gauss(0, 1), float(np.random.randn())
    return normals, random.random(), float(np.random.rand()), torch.randn(3).tolist()


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_state_of_the_global_generators_is_all_of_it(before):
    """After an odd number of normals, too, of which the second is kept; and through JSON, as in a checkpoint."""
    with borrowed_generators(3):
        for _ in range(before):
            draws()
        tensors, meta = global_random_state()
        expected = [draws(), draws()]
        for _ in range(3):
            draws()
        set_global_random_state(tensors, json.loads(json.dumps(meta)))
        assert [draws(), draws()] == expected


def test_borrowed_generators_are_given_back():
    with borrowed_generators(4):
        draws()
        expected = [draws(), draws()]
    with borrowed_generators(4):
        draws()
        with borrowed_generators(5):
            assert draws() != expected[0]
        assert [draws(), draws()] == expected

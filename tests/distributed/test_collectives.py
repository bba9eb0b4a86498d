"""Results of items in order, with a thread that is one item ahead and without."""

import threading

import pytest
import torch

from facm.distributed.collectives import in_order, one_ahead
from facm.distributed.process_group import ALONE

CPU = torch.device("cpu")


@pytest.mark.parametrize("ahead", [False, True, None])
def test_results_are_those_of_their_items_in_order(ahead):
    found = list(in_order(ALONE, [3, 1, 2], lambda k: (torch.tensor(k), None), ahead))
    assert [(item, int(x), none) for item, (x, none) in found] == [(3, 3, None), (1, 1, None), (2, 2, None)]
    assert list(in_order(ALONE, [], lambda k: (None,), ahead)) == []


def test_the_next_item_is_computed_while_the_last_one_is_used_and_no_more():
    begun = {k: threading.Event() for k in range(4)}

    def compute(k: int) -> int:
        begun[k].set()
        return 10 * k

    results = one_ahead(range(4), compute, CPU)
    assert next(results) == 0
    assert begun[1].wait(60)
    assert not begun[2].is_set()
    assert list(results) == [10, 20, 30]


def test_an_error_comes_in_its_items_place():
    results = one_ahead([2, 1, 0, 5], lambda k: 2 // k, CPU)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_thread_ends_with_a_caller_that_leaves_and_has_its_mode_of_gradients():
    with torch.no_grad():
        results = one_ahead(range(3), lambda k: torch.is_grad_enabled(), CPU)
        assert next(results) is False
        results.close()
    assert list(one_ahead([0], lambda k: torch.is_grad_enabled(), CPU)) == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]

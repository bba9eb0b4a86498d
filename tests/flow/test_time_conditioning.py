"""Times that a network is asked at, by both strategies."""

import pytest
import torch

from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval, check_task, native
from facm.networks.mlp import MLP


def test_times_of_both_conditioning_strategies():
    t = torch.tensor([0.0, 0.3, 1.0])
    listed = lambda times: {name: c.tolist() for name, c in times.items()}  # noqa: E731
    assert listed(ExpandedInterval().shortcut(t)) == {"t": t.tolist()}
    assert listed(ExpandedInterval().anchor(t)) == {"t": (2 - t).tolist()}
    assert listed(AuxiliaryTime().shortcut(t)) == {"t": t.tolist(), "r": [1, 1, 1]}
    assert listed(AuxiliaryTime().anchor(t)) == {"t": t.tolist(), "r": t.tolist()}


@pytest.mark.parametrize(
    ("task", "expected"), [(ExpandedInterval(), {"t": 1.0}), (AuxiliaryTime(), {"t": 1.0, "r": 0.0})]
)
def test_tangent_of_the_shortcuts_times_is_one_for_t_and_zero_for_r(task, expected):
    t = torch.tensor([0.2, 0.7])
    _, tangents = torch.func.jvp(task.shortcut, (t,), (torch.ones_like(t),))
    assert {name: d.unique().tolist() for name, d in tangents.items()} == {k: [v] for k, v in expected.items()}


def test_native_time_is_t_with_r_equal_to_t_where_there_is_one():
    t = torch.tensor([0.2, 0.7])
    assert native(MLP().build(), t).keys() == {"t"}
    both = native(MLP(auxiliary_time=True).build(), t)
    assert torch.equal(both["t"], t)
    assert torch.equal(both["r"], t)
    assert native(lambda x, t: x, t).keys() == {"t"}


def test_auxiliary_time_with_a_network_without_r_is_an_error():
    check_task(AuxiliaryTime(), MLP(auxiliary_time=True).build())
    check_task(ExpandedInterval(), MLP().build())
    with pytest.raises(ValueError, match=r"AuxiliaryTime\(\).*MLPNetwork.*auxiliary_time=True"):
        check_task(AuxiliaryTime(), MLP().build())

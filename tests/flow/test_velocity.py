"""Velocity targets: from a teacher or from the data, and what the network is asked for them."""

import pytest
import torch

from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.mlp import MLP
from tests.flow.flow_parts import COND, LABELS, NULL, VALUE, T, Table, X


def ask(target, network=None, teacher=None, task=None, t=T, dropped=None):
    x_1, x_0 = 2 * torch.ones(4, 1), 0.5 * torch.ones(4, 1)
    cond = COND if dropped is None else torch.where(dropped, NULL, COND)
    return target(network, teacher, Interpolant(x_0, x_1, t, X, cond, dropped), LABELS, task or ExpandedInterval())


@pytest.mark.parametrize(
    ("teacher", "task", "at_anchor", "times"),
    [
        (Table(), ExpandedInterval(), False, 10 * T),
        (Table(), ExpandedInterval(), True, 10 * (2 - T)),
        (Table(), AuxiliaryTime(), False, 10 * T),
        (Table(True), AuxiliaryTime(), False, 110 * T),
        (Table(True), AuxiliaryTime(), True, 110 * T),
        (Table(True), ExpandedInterval(), False, 110 * T),
    ],
)
def test_teacher_is_asked_at_its_native_time_or_at_the_anchor(teacher, task, at_anchor, times):
    v = ask(TeacherVelocity(Guidance(3.0, 0.5, 0.75), at_anchor), None, teacher, task)
    guided = torch.tensor([[1.0], [-2.0], [-5.0], [2.0]])
    torch.testing.assert_close(v, X + times[:, None] + guided)


def test_targets_say_whether_they_need_a_teacher():
    assert TeacherVelocity.needs_teacher
    assert not DataVelocity.needs_teacher
    assert TeacherVelocity().guidance == Guidance(1.75, 0.125, 1.0)
    assert DataVelocity().guidance == NO_GUIDANCE
    with pytest.raises(ValueError, match=r"TeacherVelocity\(\) needs a teacher and got None"):
        ask(TeacherVelocity(), Table())


INTERVAL = Guidance(3.0, 0.5, 0.75)
V = 1.5  # x_1 - x_0
ANCHOR, SHORTCUT = X + 10 * (2 - T[:, None]), X + 10 * T[:, None]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (DataVelocity(), torch.full((4, 1), V)),
        (DataVelocity(INTERVAL), ANCHOR + 4 + 3 * (V - ANCHOR - 4)),
        (DataVelocity(INTERVAL, at_shortcut=True), SHORTCUT + 4 + 3 * (V - SHORTCUT - 4)),
        (DataVelocity(INTERVAL, both_online=True), V + 3 * (VALUE - 4)),
    ],
)
def test_velocity_from_scratch_is_guided_by_the_networks_own_null(target, expected):
    inside = torch.tensor([[False], [True], [True], [False]])
    torch.testing.assert_close(ask(target, Table()), torch.where(inside, expected, torch.full((4, 1), V)))


def test_extrapolating_outside_the_interval_uses_the_conditional_velocity():
    v = ask(DataVelocity(INTERVAL, extrapolate_outside=True), network := Table())
    null = torch.tensor([[VALUE[0]], [4.0], [4.0], [VALUE[3]]])
    torch.testing.assert_close(v, ANCHOR + null + 3 * (V - ANCHOR - null))
    assert network.calls == [[0, NULL, NULL, 1]]


@pytest.mark.parametrize("switches", [{}, {"both_online": True}, {"extrapolate_outside": True}, {"at_shortcut": True}])
def test_dropped_samples_keep_the_velocity_of_the_data(switches):
    dropped = torch.tensor([True, True, False, False])
    v = ask(DataVelocity(INTERVAL, **switches), Table(), dropped=dropped)
    kept = ask(DataVelocity(INTERVAL, **switches), Table())
    torch.testing.assert_close(v[:2], torch.full((2, 1), V))
    torch.testing.assert_close(v[2:], kept[2:])
    assert kept[1].item() != V


def test_two_readings_of_equation_9_exclude_each_other():
    with pytest.raises(ValueError, match="extrapolate_outside = True, expected False with both_online = True"):
        DataVelocity(both_online=True, extrapolate_outside=True)


def test_targets_have_no_graph():
    torch.manual_seed(0)
    network = MLP(1, 8, 1, NULL).build()
    for target in (TeacherVelocity(), DataVelocity(INTERVAL), DataVelocity(INTERVAL, both_online=True)):
        assert not ask(target, network, network).requires_grad

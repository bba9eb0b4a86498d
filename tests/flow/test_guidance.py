"""Guided velocities: the formula, the interval with its ends, and what the network is asked."""

from functools import partial

import pytest
import torch

from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import NO_GUIDANCE, Guidance, extrapolate, guided_velocity, velocity_field
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval, native
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.mlp import MLP

NULL = 2
LABELS = Labels(NULL)


class Table(torch.nn.Module):
    """F = x + 10 t + 100 r + (1, 2 or 4 for label 0, 1 or null): every argument can be read off the answer."""

    def __init__(self, auxiliary_time=False):
        super().__init__()
        self.auxiliary_time, self.calls = auxiliary_time, []

    def forward(self, x, t, cond=None, r=None):
        self.calls.append(None if cond is None else cond.tolist())
        out = x + 10 * t[:, None]
        if cond is not None:
            out = out + torch.tensor([1.0, 2.0, 4.0])[cond][:, None]
        return out if r is None else out + 100 * r[:, None]


X, COND = torch.tensor([[0.5], [0.25], [0.0], [1.0]]), torch.tensor([0, 1, 0, 1])
T = torch.tensor([0.25, 0.5, 0.75, 0.76])
VALUE = torch.tensor([[1.0], [2.0], [1.0], [2.0]])  # of the label


def test_guidance_acts_within_the_interval_ends_included():
    t = torch.tensor([0.0, 0.1249, 0.125, 0.5, 0.875, 0.8751, 1.0])
    assert Guidance(1.75, 0.125, 0.875).active(t).tolist() == [False, False, True, True, True, False, False]
    assert Guidance(1.75, 0.0, 1.0).active(t).all()
    assert not Guidance(1.0, 0.0, 1.0).active(t).any()
    assert Guidance() == Guidance(1.75, 0.125, 1.0)
    assert NO_GUIDANCE.scale == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0.9,), "guidance scale = 0.9, expected w >= 1"),
        ((float("nan"),), "guidance scale = nan"),
        ((2.0, -0.1, 1.0), r"guidance interval = \[-0.1, 1.0\]"),
        ((2.0, 0.6, 0.5), r"guidance interval = \[0.6, 0.5\]"),
        ((2.0, 0.1, 1.1), r"guidance interval = \[0.1, 1.1\]"),
    ],
)
def test_impossible_guidance_is_an_error_that_names_it(arguments, named):
    with pytest.raises(ValueError, match=named):
        Guidance(*arguments)


def test_guidance_may_act_at_a_single_time():
    assert Guidance(2.0, 0.5, 0.5).active(torch.tensor([0.5])).all()


def test_extrapolation_starts_at_the_unconditional_velocity():
    v_c, v_u = torch.tensor([3.0]), torch.tensor([1.0])
    assert extrapolate(v_c, v_u, 1.0).item() == 3
    assert extrapolate(v_c, v_u, 2.0).item() == 5
    assert extrapolate(v_c, v_u, 0.0).item() == 1


def test_guided_velocity_on_a_hand_case():
    network = Table()
    out = guided_velocity(network, partial(native, network), X, T, COND, LABELS, Guidance(3.0, 0.5, 0.75))
    base = X + 10 * T[:, None]
    expected = base + torch.tensor([[1.0], [4 + 3 * (2 - 4)], [4 + 3 * (1 - 4)], [2.0]])
    torch.testing.assert_close(out, expected)
    assert network.calls == [[*COND.tolist(), NULL, NULL]]  # one pass, conditions first, the null only where it acts


def parts_compiled(network):
    network.inner = Table()
    network.inner.compile(backend="eager")


@pytest.mark.parametrize("compiled", [lambda network: network.compile(backend="eager"), parts_compiled])
def test_a_compiled_network_is_asked_for_the_null_of_all_in_one_shape(compiled):
    network, guidance = Table(), Guidance(3.0, 0.5, 0.75)
    compiled(network)
    out = guided_velocity(network, partial(native, network), X, T, COND, LABELS, guidance)
    torch.testing.assert_close(out, guided_velocity(Table(), partial(native, network), X, T, COND, LABELS, guidance))
    assert network.calls == [[*COND.tolist(), NULL, NULL, NULL, NULL]]


def test_on_the_meta_device_the_null_is_asked_for_all():
    network, shapes = MLP(1, 8, 1, NULL).build().to("meta"), []
    network.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    x, t, cond = (z.to("meta") for z in (X, T, COND))
    assert guided_velocity(network, partial(native, network), x, t, cond, LABELS, Guidance(3.0)).shape == X.shape
    assert shapes == [(8, 1)]


@pytest.mark.parametrize("compiled", [False, True])
def test_half_precision_is_lifted_before_it_is_extrapolated(compiled):
    class Halved(Table):
        def forward(self, x, t, cond=None, r=None):
            return super().forward(x, t, cond, r).bfloat16()

    network = Halved()
    if compiled:
        network.compile(backend="eager")
    x = X + 0.37
    out = guided_velocity(network, partial(native, network), x, T, COND, LABELS, Guidance(3.3, 0.0, 1.0))
    v_c, v_u = (network(x, T, cond).float() for cond in (COND, torch.full_like(COND, NULL)))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, v_u + 3.3 * (v_c - v_u))


def test_without_guidance_the_null_is_not_asked_for():
    network = Table()
    out = guided_velocity(network, partial(native, network), X, T, COND, LABELS, Guidance(1.0))
    torch.testing.assert_close(out, X + 10 * T[:, None] + VALUE)
    unconditional = guided_velocity(network, partial(native, network), X, T, None, Unconditional(), NO_GUIDANCE)
    torch.testing.assert_close(unconditional, X + 10 * T[:, None])
    assert network.calls == [COND.tolist(), None]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("t", "guided"), [(0.49, False), (0.5, True), (0.75, True), (0.76, False)])
def test_a_field_asks_for_the_null_only_where_guidance_acts(t, guided, compiled):
    network = Table()
    if compiled:
        network.compile(backend="eager")
    field = velocity_field(network, ExpandedInterval().anchor, COND, LABELS, Guidance(3.0, 0.5, 0.75))
    out = field(X, torch.full((4,), t))
    expected = 4 + 3 * (VALUE - 4) if guided else VALUE
    torch.testing.assert_close(out, X + 10 * (2 - t) + expected)
    assert [len(call) for call in network.calls] == [8 if guided else 4]


def test_a_field_is_not_guided_unless_asked_to():
    network = Table()
    field = velocity_field(network, ExpandedInterval().shortcut, COND, LABELS)
    torch.testing.assert_close(field(X, T), X + 10 * T[:, None] + VALUE)


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
    with pytest.raises(ValueError, match="both_online = True and extrapolate_outside = True"):
        DataVelocity(both_online=True, extrapolate_outside=True)


def test_targets_have_no_graph():
    torch.manual_seed(0)
    network = MLP(1, 8, 1, NULL).build()
    for target in (TeacherVelocity(), DataVelocity(INTERVAL), DataVelocity(INTERVAL, both_online=True)):
        assert not ask(target, network, network).requires_grad


def test_guidance_without_labels_is_an_error():
    with pytest.raises(ValueError, match="use guidance scale 1"):
        guided_velocity(Table(), ExpandedInterval().anchor, X, T, None, Unconditional(), Guidance(2.0))

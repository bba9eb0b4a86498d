"""Guided velocities: the formula, the interval with its ends, and what the network is asked."""

from functools import partial

import pytest
import torch

from facm.flow.conditions import Unconditional
from facm.flow.guidance import NO_GUIDANCE, Guidance, extrapolate, guided_velocity, velocity_field
from facm.flow.time_conditioning import ExpandedInterval, native
from facm.networks.mlp import MLP
from tests.flow.flow_parts import COND, LABELS, NULL, VALUE, T, Table, X


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
        ((0.9,), "Guidance: scale = 0.9, expected a number within \\[1,"),
        ((float("nan"),), "Guidance: scale = nan"),
        ((2.0, -0.1, 1.0), r"Guidance: low = -0.1"),
        ((2.0, 0.6, 0.5), r"Guidance: low = 0.6, expected at most high = 0.5"),
        ((2.0, 0.1, 1.1), r"Guidance: high = 1.1"),
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


def test_guidance_without_labels_is_an_error():
    with pytest.raises(ValueError, match="use guidance scale 1"):
        guided_velocity(Table(), ExpandedInterval().anchor, X, T, None, Unconditional(), Guidance(2.0))

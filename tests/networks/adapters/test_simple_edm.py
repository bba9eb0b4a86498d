"""The Simple-EDM parametrisation: its algebra, its derivative, and one dropout mask through it."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from facm.derivative import Chain, FiniteDifference, NoGraph, OpLevel, Prediction, WholeNetwork, same_dropout
from facm.flow.conditions import Unconditional
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.flow.velocity import DataVelocity
from facm.networks.adapters.simple_edm import SimpleEDM
from facm.networks.ddpm_pp import DDPMpp
from facm.networks.mlp import MLP
from facm.objectives.facm import FACM
from facm.objectives.mean_flow import MeanFlow
from facm.objectives.scm import SCM

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
T = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)


class Wave(nn.Module):
    """G = A sin(u) + c^2, and what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, u, t, cond=None, r=None):
        self.asked.append((u, t, cond, r))
        return 1.5 * torch.sin(u) + (t**2 + (0 if r is None else r))[:, None]


@dataclass(frozen=True)
class Waves:
    def build(self):
        return Wave()


def points(n=5, dim=3):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(n, dim, generator=rng, dtype=torch.float64), torch.randn(n, dim, generator=rng).double()


def coefficients(t, sigma_data=0.5):
    """c_skip, c_out, c_in of the endpoint f = c_skip x + c_out G(c_in x), as IMM prints them."""
    s = (t**2 + (1 - t) ** 2).sqrt()
    return t / s**2, -(1 - t) / s * sigma_data, 1 / (s * sigma_data)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_the_endpoint_of_the_velocity_is_simple_edms(sigma_data):
    network, (x, _) = SimpleEDM(Waves(), sigma_data).build(), points()
    c_skip, c_out, c_in = (c[:, None] for c in coefficients(T, sigma_data))
    f = c_skip * x + c_out * Wave()(c_in * x, T)
    F = network(x, T)
    torch.testing.assert_close(x + (1 - T)[:, None] * F, f, **CLOSE)
    torch.testing.assert_close(F[:-1], ((f - x) / (1 - T)[:, None])[:-1], **CLOSE)


def test_both_ends_are_finite_and_known():
    network, (x, _) = SimpleEDM(Waves()).build(), points(2)
    F = network(x, torch.tensor([0.0, 1.0]).double())
    G = 1.5 * torch.sin(2 * x)
    torch.testing.assert_close(F, torch.stack([-x[0] - 0.5 * G[0], x[1] - 0.5 * (G[1] + 1)]), **CLOSE)


def test_the_anchor_is_on_the_same_path_and_the_network_gets_its_condition():
    network, (x, _) = SimpleEDM(Waves()).build(), points()
    out = network(x, 2 - T, cond=torch.arange(5))
    u, c, cond, r = network.inner.asked[-1]
    torch.testing.assert_close(u, x * coefficients(T)[2][:, None], **CLOSE)
    assert torch.equal(c, 2 - T)
    assert torch.equal(cond, torch.arange(5))
    assert r is None
    s2 = (T**2 + (1 - T) ** 2)[:, None]
    G = Wave()(u, 2 - T)
    torch.testing.assert_close(out, (2 * T - 1)[:, None] / s2 * x - 0.5 / s2.sqrt() * G, **CLOSE)


def test_a_second_time_is_passed_on_and_the_jump_is_imms():
    """DDIM's step to r from the endpoint f, on the linear path: x_r = r f + (1 - r)/(1 - t) (x - t f)."""
    network, (x, _) = SimpleEDM(Waves()).build(), points()
    t, r = T[:-1], (1 + T[:-1]) / 2
    x = x[:-1]
    F = network(x, t, r=r)
    assert torch.equal(network.inner.asked[-1][3], r)
    c_skip, c_out, c_in = (c[:, None] for c in coefficients(t))
    f = c_skip * x + c_out * Wave()(c_in * x, t, r=r)
    t, r = t[:, None], r[:, None]
    torch.testing.assert_close(x + (r - t) * F, r * f + (1 - r) / (1 - t) * (x - t * f), **CLOSE)


@pytest.mark.parametrize(
    ("sigma_data", "inputs", "targets"),
    [(0.5, (4.0, 1.0), (1.0, 4.0)), (0.5**0.5, (2.0, 0.5), (0.5, 2.0)), (1.0, (1.0, 0.25), (0.25, 1.0))],
)
def test_variances_from_noise_to_data_are_the_documented_ones(sigma_data, inputs, targets):
    """Noise of standard deviation 1, data of 0.5: the input of G, and what G is to be for F to be the velocity."""
    network = SimpleEDM(Waves(), sigma_data).build()
    rng = torch.Generator().manual_seed(0)
    x_0, x_1 = (torch.randn(200_000, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    x_1 = 0.5 * x_1
    for end in (0.0, 1.0):
        t = torch.full((len(x_0),), end, dtype=torch.float64)
        x_t = (1 - end) * x_0 + end * x_1
        skipped = network(x_t, t) + sigma_data * 1.0 * Wave()(network.inner.asked[-1][0], t)  # s = 1 at both ends
        target = (skipped - (x_1 - x_0)) / sigma_data
        assert network.inner.asked[-1][0].var().item() == pytest.approx(inputs[int(end)], rel=0.02)
        assert target.var().item() == pytest.approx(targets[int(end)], rel=0.02)


def test_noise_scaled_by_sigma_data_has_unit_variance_at_all_times():
    network = SimpleEDM(Waves()).build()
    rng = torch.Generator().manual_seed(0)
    x_0, x_1 = (0.5 * torch.randn(5, 40_000, generator=rng, dtype=torch.float64) for _ in range(2))
    network((1 - T)[:, None] * x_0 + T[:, None] * x_1, T)
    torch.testing.assert_close(network.inner.asked[-1][0].var(1), torch.ones(5, dtype=torch.float64), rtol=0.03, atol=0)


# Its derivative


@pytest.mark.parametrize("anchor", [False, True])
def test_the_derivative_is_the_closed_form(anchor):
    """d/dt of both coefficients, of the argument, and of the network's own time, along x_t' = v."""
    network, (x, v) = SimpleEDM(Waves()).build(), points(3)
    t = torch.tensor([0.1, 0.45, 0.95], dtype=torch.float64)
    task = ExpandedInterval().anchor if anchor else ExpandedInterval().shortcut
    function = Prediction(network, task)
    a = t[:, None]
    s = (a**2 + (1 - a) ** 2).sqrt()
    ds = (2 * a - 1) / s
    p, q = (2 * a - 1) / s**2, 0.5 / s
    dp, dq = 2 / s**2 - 2 * (2 * a - 1) * ds / s**3, -0.5 * ds / s**2
    u, du = x / (0.5 * s), v / (0.5 * s) - x * ds / (0.5 * s**2)
    c, dc = (2 - a, -1) if anchor else (a, 1)
    G, dG = 1.5 * u.sin() + c**2, 1.5 * u.cos() * du + 2 * c * dc
    expected = dp * x + p * v - dq * G - q * dG
    for derivative in (NoGraph(), OpLevel(), WholeNetwork()):
        F, dF = derivative(function, (x, t), (v, torch.ones_like(t)))
        torch.testing.assert_close(F, p * x - q * G, **CLOSE)
        torch.testing.assert_close(dF, expected, **CLOSE)
    _, dF = FiniteDifference(1e-5)(function, (x, t), (v, torch.ones_like(t)))
    torch.testing.assert_close(dF, expected, rtol=1e-7, atol=1e-7)


def small(**options):
    """Around a tiny DDPM++, in double precision, with nothing left near zero."""
    torch.manual_seed(0)
    config = {"size": 8, "channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "dropout": 0.3}
    network = SimpleEDM(DDPMpp(**config | options)).build().double()
    rng = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=rng, dtype=p.dtype) / max(p.shape[-1], 1) ** 0.5
    return network.train()


def images():
    rng = torch.Generator().manual_seed(3)
    x_1, x_0 = (torch.randn(3, 3, 8, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    return x_1, x_0, torch.tensor([0.1, 0.45, 0.9], dtype=torch.float64)


@pytest.mark.parametrize("auxiliary_time", [False, True])
def test_strategies_agree_around_the_network(auxiliary_time):
    network, (x, v, t) = small(auxiliary_time=auxiliary_time), images()
    task = AuxiliaryTime() if auxiliary_time else ExpandedInterval()
    torch.manual_seed(7)
    function = Prediction(same_dropout(network), task.shortcut)

    def everything(derivative):
        F, dF = derivative(function, (x, t), (v, torch.ones_like(t)))
        return F.detach(), dF, torch.autograd.grad((F * v).sum(), list(network.parameters()))

    expected = everything(WholeNetwork())
    assert expected[1].norm() > 1e-2
    for derivative in (OpLevel(), NoGraph(), Chain(), Chain(op_level=True), Chain(("inner.enc", "inner.dec"))):
        torch.testing.assert_close(everything(derivative), expected, **CLOSE)


# One dropout mask in one step


DERIVATIVES = {"OpLevel": OpLevel(), "NoGraph": NoGraph(), "FiniteDifference": FiniteDifference(1e-5)}


def replayed(network, state, *args, **kwargs):
    """The network's answer with the mask drawn from ``state``."""
    torch.set_rng_state(state)
    return network(*args, **kwargs).detach()


def tangent(network, state, x, v, times):
    """The central difference of the network under the mask from ``state``."""
    h = 1e-5
    ahead, behind = (replayed(network, state, x + k * h * v, **times(k * h)) for k in (1, -1))
    return (ahead - behind) / (2 * h)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_facm_has_one_mask_in_anchor_shortcut_and_tangent(name):
    network, (x_1, x_0, t) = small(), images()
    objective = FACM(Unconditional(), DataVelocity(), derivative=DERIVATIVES[name])
    torch.manual_seed(7)
    state = torch.get_rng_state()
    terms = objective.evaluate(network, Interpolant.between(x_0, x_1, t))
    torch.testing.assert_close(terms.F_FM.detach(), replayed(network, state, terms.x_t, t=2 - t), **CLOSE)
    torch.testing.assert_close(terms.F_CM.detach(), replayed(network, state, terms.x_t, t=t), **CLOSE)
    dF = tangent(network, state, terms.x_t, x_1 - x_0, lambda h: {"t": t + h})
    torch.testing.assert_close(terms.dF, dF, rtol=1e-5, atol=1e-6)
    other = objective.evaluate(network, Interpolant.between(x_0, x_1, t))
    assert not torch.allclose(other.F_FM, terms.F_FM)  # and another in the next step


@pytest.mark.parametrize("name", DERIVATIVES)
def test_mean_flow_has_one_mask_in_value_and_tangent(name):
    network, (x_1, x_0, t) = small(auxiliary_time=True), images()
    r = torch.tensor([0.5, 0.45, 1.0], dtype=torch.float64)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    terms = MeanFlow(Unconditional(), DataVelocity(), derivative=DERIVATIVES[name]).evaluate(
        network, Interpolant.between(x_0, x_1, t), r
    )
    torch.testing.assert_close(terms.F.detach(), replayed(network, state, terms.x_t, t=t, r=r), **CLOSE)
    dF = tangent(network, state, terms.x_t, x_1 - x_0, lambda h: {"t": t + h, "r": r})
    torch.testing.assert_close(terms.dF, dF, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_scm_has_one_mask_in_value_and_tangent_and_learns_its_weight(name):
    network, (x_1, x_0, t) = small(pixel_norm=True, weight_head=True), images()
    objective = SCM(Unconditional(), DataVelocity(), derivative=DERIVATIVES[name])
    torch.manual_seed(7)
    state = torch.get_rng_state()
    terms = objective.evaluate(network, Interpolant.between(x_0, x_1, t))
    torch.testing.assert_close(terms.F_CM.detach(), replayed(network, state, terms.x_t, t=t), **CLOSE)
    dF = tangent(network, state, terms.x_t, x_1 - x_0, lambda h: {"t": t + h})
    torch.testing.assert_close(terms.dF, dF, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.log_weight, network.inner.log_weight(t), **CLOSE)
    terms.loss().total.backward()
    assert all(p.grad is not None and p.grad.any() for p in network.inner.log_weights.outer.parameters())


# What it says of itself


def test_its_attributes_are_the_networks():
    plain = small(dropout=0.0)
    assert (plain.auxiliary_time, plain.weight_head) == (False, False)
    assert same_dropout(plain) is plain
    both = small(auxiliary_time=True, weight_head=True)
    assert (both.auxiliary_time, both.weight_head) == (True, True)
    assert same_dropout(both) is not both
    assert both.zero_init_prefixes == ("inner.second_time.", "inner.log_weights.")
    added = both.state_dict().keys() - plain.state_dict().keys()
    assert added
    assert all(name.startswith(both.zero_init_prefixes) for name in added)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.equal(both.log_weight(t), both.inner.log_weight(t))
    assert SimpleEDM(Waves()).build().zero_init_prefixes == ()


def test_without_a_head_there_is_no_weight():
    with pytest.raises(ValueError, match="weight_head = False, expected weight_head = True"):
        SimpleEDM(Waves()).build().log_weight(T)


def test_the_output_is_in_float32_or_better():
    network = SimpleEDM(MLP(dim=3, width=8)).build()
    x, t = torch.randn(2, 3), torch.tensor([0.2, 1.7])
    assert network(x, t).dtype == torch.float32
    assert network.double()(x.double(), t).dtype == torch.float64
    out = network.bfloat16()(x.bfloat16(), t.bfloat16())
    assert out.dtype == torch.float32
    asked = []
    network.inner.register_forward_pre_hook(lambda m, given: asked.append(given[0].dtype))
    network(x.bfloat16(), t.bfloat16())
    assert asked == [torch.bfloat16]


def test_in_half_precision_only_the_network_rounds():
    network, (x, _) = SimpleEDM(Waves()).build(), points(3)
    x, t = x.bfloat16(), torch.tensor([0.3, 0.77, 1.9]).bfloat16()
    F = network(x, t)
    G = Wave()(network.inner.asked[-1][0], t).double()
    assert network.inner.asked[-1][0].dtype == torch.bfloat16
    a = torch.where(t > 1, 2 - t.double(), t.double())[:, None]
    s2 = a**2 + (1 - a) ** 2
    expected = (2 * a - 1) / s2 * x.double() - 0.5 / s2.sqrt() * G
    torch.testing.assert_close(F.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma_data", [0.0, -0.5, float("nan")])
def test_sigma_data_must_be_positive(sigma_data):
    with pytest.raises(ValueError, match=f"SimpleEDM: sigma_data = {sigma_data}, expected a number within"):
        SimpleEDM(Waves(), sigma_data)

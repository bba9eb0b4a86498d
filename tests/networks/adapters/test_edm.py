"""EDM's denoiser, seen as a velocity: closed forms, both ends, the anchor, derivatives."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from facm.derivative import Chain, FiniteDifference, NoGraph, OpLevel, Prediction, WholeNetwork
from facm.flow.time_conditioning import ExpandedInterval
from facm.networks.adapters.edm import EDM, noise_condition
from facm.networks.ddpm_pp import DDPMpp
from facm.networks.mlp import MLP
from facm.sampling.solvers import edm_heun, edm_sigmas, heun

M, S, DATA = 0.3, 0.4, 0.5  # data ~ N(M, S^2); sigma_data
LOW, HIGH = 1 / 81, 1 / 1.002  # times of sigma_max = 80 and sigma_min = 0.002


def preconditioning(sigma):
    """Karras et al. 2022, Table 1: c_skip, c_out, c_in, c_noise."""
    total = sigma**2 + DATA**2
    return DATA**2 / total, sigma * DATA / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4


class ExactG(nn.Module):
    """What G is for the ideal denoiser E[x_1 | x_1 + sigma x_0] of data N(M, S^2)."""

    def forward(self, x, t, cond=None):
        sigma = (4 * t)[:, None].exp()
        c_skip, c_out, c_in, _ = preconditioning(sigma)
        noisy = x / c_in
        return ((M + S**2 / (S**2 + sigma**2) * (noisy - M)) - c_skip * noisy) / c_out


class Recorded(nn.Module):
    def __init__(self, answer=0.0):
        super().__init__()
        self.answer = answer

    def forward(self, x, t, cond=None):
        self.x, self.t, self.cond = x, t, cond
        return torch.full_like(x, self.answer)


@dataclass(frozen=True)
class Built:
    module: nn.Module

    def build(self):
        return self.module


def adapted(module, **options):
    return EDM(Built(module), **options).build()


def instantaneous(x, t, mean=M, deviation=S):
    t = t[:, None]
    return mean + (t * deviation**2 - (1 - t)) / ((1 - t) ** 2 + (t * deviation) ** 2) * (x - t * mean)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def between(n=200):
    return torch.linspace(LOW + 1e-9, HIGH - 1e-9, n, dtype=torch.float64)


# Closed forms


def test_the_velocity_is_that_of_the_denoiser_of_table_1():
    class Curved(nn.Module):
        def forward(self, x, t, cond=None):
            return (x + 3 * t[:, None]).sin()

    t, x = between(), randn(200, 3)
    sigma = ((1 - t) / t)[:, None]
    c_skip, c_out, c_in, c_noise = preconditioning(sigma)
    noisy = x / t[:, None]
    denoised = c_skip * noisy + c_out * (c_in * noisy + 3 * c_noise).sin()
    expected = (denoised - x) / (1 - t[:, None])
    torch.testing.assert_close(adapted(Curved())(x, t), expected, rtol=1e-9, atol=1e-10)


def test_an_ideal_denoiser_becomes_the_exact_velocity():
    network, t, x = adapted(ExactG()), between(), randn(200, 5) * 2
    torch.testing.assert_close(network(x, t), instantaneous(x, t), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(adapted(ExactG(), sigma_data=0.5)(x, t), instantaneous(x, t), rtol=1e-9, atol=1e-9)


def test_data_of_deviation_sigma_data_need_no_network_at_any_time():
    t, x = torch.linspace(0, 1, 101, dtype=torch.float64), randn(101, 3)
    for deviation in (0.5, 1.3):
        network = adapted(Recorded(), sigma_data=deviation)
        torch.testing.assert_close(network(x, t), instantaneous(x, t, 0.0, deviation), rtol=1e-12, atol=1e-12)


def test_the_network_is_asked_at_unit_variance_and_with_its_own_null_label():
    inner = Recorded()
    network, cond, t = adapted(inner), torch.tensor([0, 10]), torch.tensor([0.3, 0.8]).double()
    x = randn(2, 3)
    network(x, t, cond)
    scale = torch.tensor([0.7**2 + 0.25 * 0.3**2, 0.2**2 + 0.25 * 0.8**2]).double().sqrt()[:, None]
    torch.testing.assert_close(inner.x, x / scale)
    torch.testing.assert_close(inner.t, (torch.tensor([0.7 / 0.3, 0.2 / 0.8]).double()).log() / 4)
    assert inner.cond is cond
    network(x, t)
    assert inner.cond is None


# The ends


def test_at_the_ends_the_velocity_is_what_the_formula_says():
    network, x = adapted(Recorded(0.7)), randn(4, 3)
    torch.testing.assert_close(network(x, torch.zeros(4).double()), -x + DATA * 0.7)  # the mean of the data less noise
    torch.testing.assert_close(network(x, torch.ones(4).double()), x + 0.7)
    for c in (0.0, 1e-30, 1.0, 2.0):
        assert network(x.float(), torch.full((4,), c)).isfinite().all()


def test_outside_its_levels_the_noise_condition_stays_and_its_derivative_is_zero():
    t = torch.tensor([0.0, 1e-9, LOW - 1e-6, 0.5, HIGH + 1e-6, 1.0], dtype=torch.float64, requires_grad=True)
    found = noise_condition(t, 0.002, 80.0)
    ends = [math.log(80) / 4] * 3 + [0.0] + [math.log(0.002) / 4] * 2
    torch.testing.assert_close(found, torch.tensor(ends).double())
    found.sum().backward()
    torch.testing.assert_close(t.grad, torch.tensor([0, 0, 0, -1, 0, 0]).double())  # -1 / (4 t (1 - t))
    within = noise_condition(between(), 0.002, 80.0)
    torch.testing.assert_close(within, ((1 - between()) / between()).log() / 4)
    assert noise_condition(torch.tensor([0.0]), 1.0, 2.0).item() == pytest.approx(math.log(2) / 4)


def test_beyond_its_levels_the_velocity_is_close_to_the_exact_one():
    network = adapted(ExactG())
    low, high = torch.linspace(0, LOW, 40).double(), torch.linspace(HIGH, 1, 40).double()
    x = randn(40, 5)
    assert (network(x, low) - instantaneous(x, low)).abs().max() < 0.02  # of the order of 1 / sigma_max
    x = M + S * x
    assert (network(x, high) - instantaneous(x, high)).abs().max() < 0.02


@pytest.mark.parametrize("at", [LOW, HIGH, 1.0])
def test_the_velocity_is_continuous_where_the_noise_condition_stops(at):
    network, x = adapted(ExactG()), randn(1, 9)
    left, middle, right = (network(x, torch.tensor([at + h]).double()) for h in (-1e-9, 0.0, 1e-9))
    torch.testing.assert_close(left, middle, rtol=0, atol=1e-6)
    torch.testing.assert_close(right, middle, rtol=0, atol=1e-6)


# The anchor, types, attributes


def test_the_anchor_is_told_the_noise_condition_reflected_at_data():
    inner = Recorded(0.2)
    network, x = adapted(inner), randn(6, 2)
    t = torch.tensor([0.0, 0.004, 0.1, 0.5, 0.97, 1.0]).double()
    v = network(x, t)
    told, asked = inner.t, inner.x
    torch.testing.assert_close(network(x, 2 - t), v)
    torch.testing.assert_close(inner.x, asked)
    data = math.log(0.002) / 4
    torch.testing.assert_close(inner.t - data, data - told)
    assert inner.t[:5].max() < told.min()  # times of its own


def test_time_stays_out_of_half_precision():
    inner = Recorded(0.5)
    network = adapted(inner).bfloat16()
    x, t = randn(2, 3).bfloat16(), torch.tensor([0.1237, 1.6]).bfloat16()
    out = network(x, t)
    assert inner.x.dtype == torch.bfloat16
    assert inner.t.dtype == torch.float32
    own = t.double()
    exact = torch.stack([(1 - own[0]) / own[0], (own[1] - 1) / (2 - own[1])]).log() / 4
    exact[1] = math.log(0.002) / 2 - exact[1]
    torch.testing.assert_close(inner.t.double(), exact, rtol=1e-6, atol=1e-6)
    assert out.dtype == torch.float32
    assert network(x.float(), t).dtype == torch.float32
    assert network(x.double(), t.double()).dtype == torch.float64
    assert noise_condition(t[:1].half(), 0.002, 80.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_data": 0.0}, "sigma_data = 0.0, expected a number within"),
        ({"sigma_data": math.inf}, "sigma_data = inf"),
        ({"sigma_min": 0.0}, "sigma_min = 0.0, expected a number within"),
        ({"sigma_max": math.inf}, "sigma_max = inf"),
        ({"sigma_min": 90.0}, "sigma_min = 90.0"),
    ],
)
def test_impossible_levels_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EDM(MLP(), **options)


TINY = DDPMpp(size=4, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.0, num_classes=5)


def test_what_the_network_inside_has_the_adapter_has():
    assert EDM(TINY).build().stochastic is False
    assert getattr(EDM(DDPMpp(size=4, channels=8, blocks=1, attention=())).build(), "stochastic", True)
    plain = EDM(TINY).build()
    assert (plain.auxiliary_time, plain.weight_head) == (False, False)
    assert plain.zero_init_prefixes == ("inner.second_time.", "inner.log_weights.")
    with pytest.raises(ValueError, match="weight_head = False, expected weight_head = True"):
        plain.log_weight(torch.tensor([0.5]))
    network = EDM(DDPMpp(**{**vars(TINY), "auxiliary_time": True, "weight_head": True})).build()
    assert network.auxiliary_time
    assert network.weight_head
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    x, t, r, cond = randn(2, 3, 4, 4).float(), torch.tensor([0.2, 0.6]), torch.tensor([0.5, 1.0]), torch.tensor([1, 5])
    own, later = (noise_condition(value, 0.002, 80.0) for value in (t, r))
    torch.testing.assert_close(network.log_weight(t), network.inner.log_weight(own))
    asked = {}
    network.inner.register_forward_pre_hook(lambda _, __, kwargs: asked.update(kwargs), with_kwargs=True)
    out = network(x, t, cond, r=r)
    torch.testing.assert_close(asked["t"], own)
    torch.testing.assert_close(asked["r"], later)
    assert (out - network(x, t, cond, r=r.flip(0))).abs().max() > 1e-4
    assert not Recorded().__dict__.get("auxiliary_time", adapted(Recorded()).auxiliary_time)


# Samples


def test_edms_own_sampler_asks_as_edm_does_and_lands_on_the_data():
    """Algorithm 1 written again on D, from the same noise: the same samples."""
    network, exact = adapted(ExactG()), ExactG()

    def denoiser(noisy, sigma):
        c_skip, c_out, c_in, c_noise = preconditioning(torch.tensor([[sigma]]).double())
        return c_skip * noisy + c_out * exact(c_in * noisy, c_noise[:, 0].expand(len(noisy)))

    x_0, sigmas = randn(400, 2), edm_sigmas(18)
    y = sigmas[0] * x_0
    for sigma, lower in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        slope = (y - denoiser(y, sigma)) / sigma
        ahead = y + (lower - sigma) * slope
        if lower:
            slope = (slope + (ahead - denoiser(ahead, lower)) / lower) / 2
            ahead = y + (lower - sigma) * slope
        y = ahead
    found = edm_heun(network, x_0, sigmas)
    torch.testing.assert_close(found, y, rtol=1e-8, atol=1e-8)
    assert (found - (M + S * x_0)).abs().max() < 0.1
    fine = edm_heun(network, x_0, edm_sigmas(200))
    assert (fine - (M + S * x_0)).abs().max() < 5e-3
    whole = heun(network, x_0, [i / 200 for i in range(200)])
    assert (whole - (M + S * x_0)).abs().max() < 0.05


# Derivatives


def refilled():
    torch.manual_seed(0)
    network = EDM(TINY).build().double()
    for p in network.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return network


def everything(derivative, network, t):
    x, v = randn(len(t), 3, 4, 4, seed=1), randn(len(t), 3, 4, 4, seed=2)
    function = Prediction(network, ExpandedInterval().shortcut, torch.arange(len(t)) % 6)
    F, dF = derivative(function, (x, t), (v, torch.ones_like(t)))
    weights = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((F * randn(*F.shape, seed=3)).sum(), weights)
    return F.detach(), dF, gradients


TIMES = [0.2003, 0.6507, 0.9402, 0.003, 0.999]  # the last two outside the levels


@pytest.mark.parametrize(
    "derivative", [OpLevel(), NoGraph(), Chain(("inner.enc",))], ids=["op level", "no graph", "chain"]
)
def test_strategies_agree_through_the_adapter(derivative):
    network, t = refilled(), torch.tensor(TIMES, dtype=torch.float64)
    expected = everything(WholeNetwork(), network, t)
    torch.testing.assert_close(everything(derivative, network, t), expected, rtol=1e-9, atol=1e-9)


def test_derivatives_are_finite_at_the_ends():
    network, t = refilled(), torch.tensor([0.0, LOW, HIGH, 1.0], dtype=torch.float64)
    F, dF, gradients = everything(WholeNetwork(), network, t)
    assert all(value.isfinite().all() for value in (F, dF, *gradients))


@pytest.mark.parametrize("time", TIMES)
def test_the_derivative_is_that_of_central_differences(time):
    network, t = refilled(), torch.tensor([time], dtype=torch.float64)
    exact = everything(WholeNetwork(), network, t)[1]
    wrong = [(everything(FiniteDifference(h), network, t)[1] - exact).norm() / exact.norm() for h in (2e-5, 1e-5)]
    assert wrong[0] < 1e-5
    assert wrong[1] < 0.35 * wrong[0] or wrong[1] < 1e-9

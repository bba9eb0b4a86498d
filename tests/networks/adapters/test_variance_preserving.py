"""A noise-prediction network on the VP path, seen as a velocity: closed forms, samplers, derivatives."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from facm.derivative import Chain, FiniteDifference, NoGraph, OpLevel, Prediction, WholeNetwork
from facm.flow.time_conditioning import ExpandedInterval
from facm.networks.adapters.foreign import Foreign
from facm.networks.adapters.variance_preserving import VariancePreserving, log_noise_ratios, timestep
from facm.networks.lightning_dit import LightningDiT
from facm.networks.mlp import MLP
from facm.networks.presets import dit, repa, sit
from facm.sampling.solvers import euler, heun

M, S = 1.5, 0.4  # data ~ N(M, S^2)

# DDPM's schedule, written again, slowly
ALPHA_BAR = [1.0 - 1e-4]
for k in range(1, 1000):
    ALPHA_BAR.append(ALPHA_BAR[-1] * (1 - (1e-4 + k * (0.02 - 1e-4) / 999)))
ALPHA_BAR = np.array(ALPHA_BAR)
ALPHA, SIGMA = np.sqrt(ALPHA_BAR), np.sqrt(1 - ALPHA_BAR)
TIME = ALPHA / (ALPHA + SIGMA)  # of the linear path, for each timestep; decreasing


def between(tau):
    """(alpha, sigma) at the timesteps tau, fractions in between."""
    ratio = torch.from_numpy(np.interp(tau.double().numpy(), np.arange(1000), np.log(SIGMA / ALPHA)))
    return torch.sigmoid(-2 * ratio).sqrt()[:, None], torch.sigmoid(2 * ratio).sqrt()[:, None]


class ExactNoise(nn.Module):
    """E[eps | x] of data N(M, S^2)."""

    def forward(self, x, t, cond=None):
        alpha, sigma = between(t.abs())
        return (sigma * (x - alpha * M) / (alpha**2 * S**2 + sigma**2)).to(x.dtype)


class Recorded(nn.Module):
    def forward(self, x, t, cond=None):
        self.x, self.t, self.cond = x, t, cond
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Built:
    module: nn.Module

    def build(self):
        return self.module


def adapted(module, **options):
    return VariancePreserving(Built(module), **options).build()


def instantaneous(x, t):
    t = t[:, None]
    return M + (t * S**2 - (1 - t)) / ((1 - t) ** 2 + (t * S) ** 2) * (x - t * M)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The timestep


def test_each_timestep_has_the_signal_to_noise_ratio_of_its_time():
    ratios = log_noise_ratios(VariancePreserving(MLP()))
    assert ratios.dtype == torch.float64
    np.testing.assert_allclose(ratios.numpy(), np.log(SIGMA / ALPHA), rtol=1e-9, atol=1e-11)
    found = timestep(torch.from_numpy(TIME), ratios)
    np.testing.assert_allclose(found.numpy(), np.arange(1000), atol=1e-6)


def test_between_two_timesteps_the_logarithm_of_the_ratio_is_interpolated():
    ratio = np.log(SIGMA / ALPHA)
    middle = torch.tensor([(ratio[k] + ratio[k + 1]) / 2 for k in (0, 1, 500, 998)])
    found = timestep(torch.sigmoid(-middle), log_noise_ratios(VariancePreserving(MLP())))
    np.testing.assert_allclose(found.numpy(), [0.5, 1.5, 500.5, 998.5], atol=1e-6)


def test_outside_the_table_the_timestep_stays_at_its_ends():
    t = torch.tensor([0.0, 1e-9, TIME[-1] - 1e-5, TIME[0] + 1e-5, 1.0]).double().requires_grad_()
    found = timestep(t, log_noise_ratios(VariancePreserving(MLP())))
    np.testing.assert_allclose(found.detach().numpy(), [999, 999, 999, 0, 0], atol=1e-9)
    found.sum().backward()
    assert torch.equal(t.grad, torch.zeros(5, dtype=torch.float64))


def test_the_schedule_is_the_configured_one():
    ratios = log_noise_ratios(VariancePreserving(MLP(), steps=3, beta_start=0.1, beta_end=0.3))
    bars = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]).double()
    torch.testing.assert_close(ratios, ((1 - bars) / bars).log() / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps = 1, expected an integer within \\[2,"),
        ({"beta_start": 0.0}, "beta_start = 0.0, expected a number within"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start = 0.5, expected at most beta_end = 0.1"),
        ({"beta_end": 1.0}, "beta_end = 1.0"),
    ],
)
def test_impossible_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VariancePreserving(MLP(), **options)


# What the network is asked, and when


def test_the_network_is_asked_at_unit_variance_and_with_its_own_null_label():
    inner = Recorded()
    network, cond = adapted(inner), torch.tensor([0, 7])
    x = randn(2, 3)
    network(x, torch.tensor([0.3, 0.8]).double(), cond)
    scale = torch.tensor([(0.3**2 + 0.7**2) ** 0.5, (0.8**2 + 0.2**2) ** 0.5]).double()[:, None]
    torch.testing.assert_close(inner.x, x / scale)
    assert inner.cond is cond
    network(x, torch.tensor([0.3, 0.8]).double())
    assert inner.cond is None


def test_the_anchor_gets_the_negative_timestep_of_the_reflected_time():
    inner = Recorded()
    network, x = adapted(inner), randn(6, 2)
    t = torch.tensor([0.0, 0.004, 0.1, 0.5, 0.97, 1.0]).double()
    v = network(x, t)
    tau, asked = inner.t, inner.x
    torch.testing.assert_close(network(x, 2 - t), v)
    torch.testing.assert_close(inner.t, -tau)
    torch.testing.assert_close(inner.x, asked)
    assert inner.t[3] < -100


def test_time_stays_out_of_half_precision():
    inner = Recorded()
    network = adapted(inner).bfloat16()
    x, t = randn(2, 3).bfloat16(), torch.tensor([0.1237, 1.6]).bfloat16()
    out = network(x, t)
    assert inner.x.dtype == torch.bfloat16
    assert inner.t.dtype == torch.float32
    exact = timestep(torch.stack([t[0].double(), 2 - t[1].double()]), log_noise_ratios(network.config))
    torch.testing.assert_close(inner.t.double(), exact * torch.tensor([1, -1]), rtol=1e-6, atol=1e-4)
    assert out.dtype == torch.float32
    assert network(x.float(), t.float()).dtype == torch.float32
    assert not list(network.buffers())


# Against closed forms


def test_an_exact_noise_prediction_becomes_the_exact_velocity():
    network = adapted(ExactNoise())
    t = torch.linspace(float(TIME[-1]) + 1e-9, float(TIME[0]) - 1e-9, 400, dtype=torch.float64)
    x = randn(400, 5) * 2
    torch.testing.assert_close(network(x, t), instantaneous(x, t), rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(network(x, 2 - t), instantaneous(x, t), rtol=1e-9, atol=1e-8)


def test_outside_the_table_the_velocity_is_close_to_the_exact_one():
    network = adapted(ExactNoise())
    x = randn(40, 5)
    low = torch.linspace(0, float(TIME[-1]), 40, dtype=torch.float64)
    high = torch.linspace(float(TIME[0]), 1, 40, dtype=torch.float64)
    assert (network(x, low) - instantaneous(x, low)).abs().max() < 0.01  # of the order of t_min
    x = S * x / 2 + M
    assert (network(x, high) - instantaneous(x, high)).abs().max() < 0.08  # eps at a little more noise


@pytest.mark.parametrize("at", [float(TIME[-1]), float(TIME[0]), 1.0])
def test_the_velocity_is_continuous_where_its_formula_changes(at):
    network, x = adapted(ExactNoise()), randn(1, 9)
    left, middle, right = (network(x, torch.tensor([at + h]).double()) for h in (-1e-9, 0.0, 1e-9))
    torch.testing.assert_close(left, middle, rtol=0, atol=1e-4)
    torch.testing.assert_close(right, middle, rtol=0, atol=1e-4)


def test_at_pure_noise_the_velocity_points_to_what_the_last_timestep_predicts():
    network, x = adapted(ExactNoise()), randn(4, 3)
    eps = ExactNoise()(x, torch.full((4,), 999.0))
    x_1 = (x - SIGMA[-1] * eps) / ALPHA[-1]
    for c in (0.0, 2.0):
        torch.testing.assert_close(network(x, torch.full((4,), c).double()), x_1 - x, rtol=1e-8, atol=1e-8)
    for c in (0.0, 1.0, 2.0):
        assert network(x.float(), torch.full((4,), c)).isfinite().all()


# Against DDIM


def ddim(noise_of, x):
    """Deterministic DDIM through all 1000 timesteps, from x at the last."""
    for k in range(999, -1, -1):
        eps = noise_of(x, torch.full((len(x),), float(k)))
        x_1 = (x - SIGMA[k] * eps) / ALPHA[k]
        x = x_1 if k == 0 else ALPHA[k - 1] * x_1 + SIGMA[k - 1] * eps
    return x


def from_the_last_timestep(field, z, n, sampler):
    """The converted field's samples from the noise at which DDIM starts: t_min, not 0, scaled from unit variance."""
    t_min = float(TIME[-1])
    x = z * (t_min**2 + (1 - t_min) ** 2) ** 0.5

    def moved(x, s):  # the sampler runs s from 0 to 1, the field t from t_min to 1
        return (1 - t_min) * field(x, t_min + (1 - t_min) * s)

    return sampler(moved, x, [(i / n) ** 2 for i in range(n)])  # finer where the path bends


def test_sampling_the_exact_field_is_ddim():
    exact, z = ExactNoise(), randn(100, 4)
    network = adapted(exact)
    expected = ddim(exact, z)
    assert abs(expected.mean() - M) < 0.06
    assert abs(expected.std() - S) < 0.04
    for sampler, n in ((euler, 2000), (heun, 500)):
        assert (from_the_last_timestep(network, z, n, sampler) - expected).abs().max() < 5e-3
    whole = heun(network, z, [(i / 500) ** 2 for i in range(500)])
    assert (whole - expected).abs().max() < 0.02  # from t = 0, noise that DDIM takes for the last timestep's sample


class TwoModes(nn.Module):
    """A small noise-prediction network of its own making: timesteps 0 .. 999 in, eps out."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 + 8 + 2, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))
        self.labels = nn.Embedding(3, 2)

    def forward(self, x, t, cond):
        phase = t[:, None].to(x.dtype) / 1000 * torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=x.dtype)
        return self.layers(torch.cat([x, phase.sin(), phase.cos(), self.labels(cond)], dim=1))


def trained():
    torch.manual_seed(0)
    network = TwoModes()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    alpha, sigma = torch.from_numpy(ALPHA).float(), torch.from_numpy(SIGMA).float()
    for _ in range(1200):
        cond = torch.randint(2, (256,))
        x_1 = torch.stack([3.0 * cond - 1.5, torch.ones(256)], dim=1) + 0.3 * torch.randn(256, 2)
        eps, k = torch.randn(256, 2), torch.randint(1000, (256,))
        out = network(alpha[k, None] * x_1 + sigma[k, None] * eps, k, cond)
        loss = (out - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False).double()


@pytest.mark.slow
def test_a_trained_noise_network_gives_the_same_samples_either_way():
    inner, z, cond = trained(), randn(256, 2), torch.arange(256) % 2
    network = adapted(inner)
    expected = ddim(partial(inner, cond=cond), z)
    for label, centre in ((0, -1.5), (1, 1.5)):
        assert (expected[cond == label].mean(0) - torch.tensor([centre, 1.0])).abs().max() < 0.2
        assert (expected[cond == label].std(0) - 0.3).abs().max() < 0.15
    field = partial(network, cond=cond)
    assert (from_the_last_timestep(field, z, 500, heun) - expected).abs().max() < 0.01
    whole = heun(field, z, [(i / 500) ** 2 for i in range(500)])
    # From t = 0 the field is less exact: there sigma / alpha = 157 multiplies the network's own error in eps.
    assert (whole - expected).square().mean().sqrt() < 0.05


# Derivatives

TINY = {"input_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 32, "depth": 2, "num_heads": 2}
TINY |= {"num_classes": 5, "learn_sigma": True} | dict.fromkeys(("qk_norm", "swiglu", "rope", "rmsnorm"), False)


def refilled():
    torch.manual_seed(0)
    network = VariancePreserving(LightningDiT(**TINY)).build().double()
    for p in network.parameters():
        if p.requires_grad:
            p.data += 0.2 * torch.randn_like(p)
    return network


def everything(derivative, network, t):
    x, v = randn(len(t), 3, 4, 4, seed=1), randn(len(t), 3, 4, 4, seed=2)
    function = Prediction(network, ExpandedInterval().shortcut, torch.arange(len(t)) % 6)
    F, dF = derivative(function, (x, t), (v, torch.ones_like(t)))
    weights = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((F * randn(*F.shape, seed=3)).sum(), weights)
    return F.detach(), dF, gradients


# within a timestep, below the table, above it
TIMES = [0.2003, 0.6507, 0.9402, 0.003, 0.995]


@pytest.mark.parametrize(
    "derivative", [OpLevel(), NoGraph(), Chain(("inner.blocks",)), Chain(("inner.blocks",), op_level=True)], ids=str
)
def test_strategies_agree_through_the_adapter(derivative):
    network, t = refilled(), torch.tensor(TIMES, dtype=torch.float64)
    expected = everything(WholeNetwork(), network, t)
    torch.testing.assert_close(everything(derivative, network, t), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ends", [[0.0, 1.0], [float(TIME[-1]), float(TIME[0])]])
def test_derivatives_are_finite_and_agree_at_the_ends(ends):
    network, t = refilled(), torch.tensor(ends, dtype=torch.float64)
    expected = everything(WholeNetwork(), network, t)
    assert expected[1].isfinite().all()
    torch.testing.assert_close(everything(OpLevel(), network, t), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("time", TIMES)
def test_the_derivative_is_that_of_central_differences(time):
    network, t = refilled(), torch.tensor([time], dtype=torch.float64)
    tau = timestep(t, log_noise_ratios(network.config)).item()
    assert tau < 1e-9 or tau > 999 - 1e-9 or 0.05 < tau % 1 < 0.95  # away from the knots
    exact = everything(WholeNetwork(), network, t)[1]
    wrong = [(everything(FiniteDifference(h), network, t)[1] - exact).norm() / exact.norm() for h in (2e-6, 1e-6)]
    assert wrong[0] < 1e-5
    assert wrong[1] < 0.35 * wrong[0] or wrong[1] < 1e-9


def test_what_draws_nothing_says_so():
    assert refilled().stochastic is False
    assert Foreign(LightningDiT(**TINY)).build().stochastic is False
    for network in (adapted(ExactNoise()), Foreign(Built(ExactNoise())).build()):
        assert getattr(network, "stochastic", True)


# Published sizes


@pytest.mark.parametrize(
    ("name", "millions"),  # Table 4 of the DiT paper
    [
        ("S/2", 33), ("S/4", 33), ("S/8", 33), ("B/2", 130), ("B/4", 130), ("B/8", 131),
        ("L/2", 458), ("L/4", 458), ("L/8", 459), ("XL/2", 675), ("XL/4", 675), ("XL/8", 676),
    ],
)  # fmt: skip
def test_sizes_have_the_published_numbers_of_parameters(name, millions):
    with torch.device("meta"):
        built = [make(name).build() for make in (dit, sit)]
    for network in built:
        count = sum(p.numel() for p in network.parameters())
        assert int(count / 1e6) == millions or round(count / 1e6) == millions
    if name == "XL/2":
        assert count == 675_129_632


def test_the_three_families_differ_in_their_convention_alone():
    assert sit("B/4").learn_sigma
    assert isinstance(dit("B/4"), VariancePreserving)
    assert dit("B/4") == VariancePreserving(sit("B/4"), steps=1000, beta_start=1e-4, beta_end=0.02)
    assert repa("B/4") == Foreign(sit("B/4", learn_sigma=False), reversed_time=True, time_scale=1.0)
    assert (sit("XL/2").input_size, sit("XL/2").in_channels, sit("XL/2").num_classes) == (32, 4, 1000)
    assert repa("B/2", qk_norm=True).network.qk_norm


@pytest.mark.slow
def test_published_networks_are_velocities_of_our_convention():
    tiny = {"input_size": 4, "hidden_size": 64, "depth": 1, "num_heads": 2, "num_classes": 3}
    x, cond = randn(2, 4, 4, 4).float(), torch.tensor([0, 3])
    with pytest.raises(TypeError, match="hidden_size"):
        sit("S/2", **tiny)
    for config in (sit("S/2", input_size=4), repa("S/2", input_size=4), dit("S/2", input_size=4)):
        network = config.build()
        for c in (0.0, 0.4, 1.0, 1.6, 2.0):
            assert network(x, torch.full((2,), c), cond).shape == x.shape


@pytest.mark.parametrize(("make", "family"), [(sit, "SiT"), (repa, "REPA"), (dit, "DiT")])
@pytest.mark.parametrize("name", ["XXL/2", "XL", "XL-2", "1p0B/2"])
def test_unknown_sizes_are_refused(make, family, name):
    with pytest.raises(ValueError, match=f"{family} size = '{name}', expected one of S, B, L, XL and a patch size"):
        make(name)

"""Samplers: exact where theory says so, of the order that theory says, and by hand; and the samples built on them."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest
import torch

from facm.core.objective import NetworkInterface, as_objective
from facm.core.rng import derive
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import Guidance
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.networks.mlp import MLP
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.discrete_cm import DiscreteCM
from facm.objectives.discrete_schedules import DoublingSteps
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.objectives.imm import IMM
from facm.objectives.mean_flow import MeanFlow
from facm.objectives.scm import SCM
from facm.objectives.shortcut_model import ShortcutModel
from facm.sampling.generate import balanced_labels, noise, sample, sample_balanced
from facm.sampling.methods import Consistency, DPMSolverPP, EDMHeun, Euler, Heun, Jumps, default_method
from facm.sampling.solvers import (
    check_times,
    consistency,
    dpm_solver_pp,
    edm_heun,
    edm_sigmas,
    euler,
    heun,
    jumps,
    shifted_times,
    uniform_times,
)
from facm.sampling.source import Source

M, S = 1.5, 0.4  # data ~ N(M, S^2)


def spread(t):
    return torch.sqrt((1 - t) ** 2 + (t * S) ** 2)


def instantaneous(x, t):
    t = t[:, None]
    return M + (t * S**2 - (1 - t)) / spread(t) ** 2 * (x - t * M)


def average(x, t):
    t = t[:, None]
    return (M + S * (x - t * M) / spread(t) - x) / (1 - t)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Schedules


def test_uniform_times_start_at_noise_and_end_one_step_before_data():
    assert uniform_times(4) == [0, 0.25, 0.5, 0.75]
    assert uniform_times(1) == [0]


def test_shifted_times_follow_the_formula():
    assert shifted_times(4, 1.0) == pytest.approx([0, 0.25, 0.5, 0.75])
    assert shifted_times(4, 3.0) == pytest.approx([0, 0.5, 0.75, 0.9])
    assert shifted_times(2, 0.5) == pytest.approx([0, 1 / 3])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: uniform_times(0), "nfe = 0"),
        (lambda: shifted_times(2, 0.0), "shift = 0.0"),
        (lambda: check_times([]), r"times = \[\]"),
        (lambda: check_times([0.1, 0.5]), r"times = \[0.1, 0.5\]"),
        (lambda: check_times([0.0, 0.5, 0.5]), r"times = \[0.0, 0.5, 0.5\]"),
        (lambda: check_times([0.0, 0.5, 0.4]), "increase strictly"),
        (lambda: check_times([0.0, 1.0]), "below 1"),
    ],
)
def test_an_impossible_schedule_is_an_error_that_names_it(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(
    "sampler",
    [
        lambda F, x, t: consistency(F, x, t, lambda i: x),
        euler,
        heun,
        dpm_solver_pp,
        lambda F, x, t: jumps(lambda x, t, r: F(x, t), x, t),
    ],
)
def test_every_sampler_checks_its_times(sampler):
    check_times([0.0, 0.3, 0.99])
    with pytest.raises(ValueError, match=r"times = \[0.2, 0.5\]"):
        sampler(instantaneous, randn(2, 1), [0.2, 0.5])


def test_several_consistency_steps_need_noise():
    with pytest.raises(ValueError, match="2 consistency steps need fresh_noise"):
        consistency(average, randn(2, 1), [0.0, 0.5])


# Theory


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.5], [0.0, 0.25, 0.5, 0.75], [0.0, 0.9]])
def test_consistency_sampler_is_exact_for_the_exact_network(times):
    x_0 = randn(200_000, 1)
    x = consistency(average, x_0, times, lambda i: randn(200_000, 1, seed=i))
    assert x.mean().item() == pytest.approx(M, abs=0.004)
    assert x.std().item() == pytest.approx(S, abs=0.003)
    if len(times) == 1:
        torch.testing.assert_close(x, M + S * x_0)


def test_consistency_steps_by_hand():
    """F = 1 everywhere: each jump adds 1 - t, each renoising mixes by t."""
    x_0, z = torch.tensor([[2.0]]), {1: torch.tensor([[10.0]]), 2: torch.tensor([[20.0]])}
    asked = []

    def F(x, t):
        asked.append((x.item(), t.item()))
        return torch.ones_like(x)

    x = consistency(F, x_0, [0.0, 0.25, 0.75], z.__getitem__)
    # 2 -> 3 ; 0.25 * 3 + 0.75 * 10 = 8.25 -> 9 ; 0.75 * 9 + 0.25 * 20 = 11.75 -> 12
    assert asked == [(2.0, 0.0), (8.25, 0.25), (11.75, 0.75)]
    assert x.item() == 12


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_draws_noise_once_between_steps_and_none_after_the_last(steps):
    drawn, asked = [], []
    consistency(
        lambda x, t: asked.append(t) or x,
        randn(2, 1),
        uniform_times(steps),
        lambda i: drawn.append(i) or torch.zeros(2, 1),
    )
    assert drawn == list(range(1, steps))
    assert len(asked) == steps


def test_euler_and_heun_by_hand():
    """dx/dt = 2 t over unequal steps 0, 0.2, 0.5: Euler's sum, and the trapezium with a last Euler step."""

    def F(x, t):
        return 2 * t[:, None] + 0 * x

    x_0, times = torch.tensor([[1.0]], dtype=torch.float64), [0.0, 0.2, 0.5]
    assert euler(F, x_0, times).item() == pytest.approx(1 + 0.3 * 0.4 + 0.5 * 1.0)
    assert heun(F, x_0, times).item() == pytest.approx(1 + 0.5**2 + 0.5 * 1.0)


def test_heun_corrects_at_the_predicted_point():
    """dx/dt = x: one full step multiplies by 1 + h + h^2 / 2, the last by 1 + h."""
    x = heun(lambda x, t: x, torch.ones(1, 1, dtype=torch.float64), [0.0, 0.4])
    assert x.item() == pytest.approx((1 + 0.4 + 0.08) * (1 + 0.6))


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_error_falls_with_the_order_of_the_method(sampler, order):
    """One last Euler step has an error of h^2 itself, so that Heun's order stays 2."""
    x_0 = randn(256, 2)
    errors = [
        (sampler(instantaneous, x_0, uniform_times(n)) - (M + S * x_0)).abs().mean().item() for n in (40, 80, 160)
    ]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([order] * 2, abs=0.15)


def between(x, t, r):
    """The exact average velocity from t to r."""
    t, r = t[:, None], r[:, None]
    return (r * M + spread(r) / spread(t) * (x - t * M) - x) / (r - t)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.5], uniform_times(8), [0.0, 0.9]])
def test_jumps_are_exact_for_the_exact_network(times):
    x_0 = randn(64, 2)
    torch.testing.assert_close(jumps(between, x_0, times), M + S * x_0)


def test_jumps_by_hand():
    """F = 2 t + r over 0, 0.25, 0.75: from 2, plus a quarter, plus half of 1.25, plus a quarter of 2.5."""
    asked = []

    def F(x, t, r):
        asked.append((x.item(), t.item(), r.item()))
        return (2 * t + r)[:, None]

    x = jumps(F, torch.tensor([[2.0]]), [0.0, 0.25, 0.75])
    assert asked == [(2.0, 0.0, 0.25), (2.0625, 0.25, 0.75), (2.6875, 0.75, 1.0)]
    assert x.item() == 2.6875 + 0.25 * 2.5


def test_dpm_solver_pp_by_hand():
    """Towards D, which is 1, 3 and 0 here, over 0, 0.2, 0.5, 0.8; only the third of four steps extrapolates."""
    targets = {0.0: 1.0, 0.2: 3.0, 0.5: 0.0, 0.8: 7.0}

    def F(x, t):
        return (targets[round(t[0].item(), 9)] - x) / (1 - t)[:, None]

    x = dpm_solver_pp(F, torch.tensor([[2.0]], dtype=torch.float64), [0.0, 0.2, 0.5, 0.8])
    assert x.item() == pytest.approx(7)  # the last step goes all the way
    x = dpm_solver_pp(F, torch.tensor([[2.0]], dtype=torch.float64), [0.0, 0.2])
    assert x.item() == pytest.approx(3)

    seen = {}

    def recorded(x, t):
        seen[round(t[0].item(), 9)] = x.item()
        return F(x, t)

    dpm_solver_pp(recorded, torch.tensor([[2.0]], dtype=torch.float64), [0.0, 0.2, 0.5, 0.8])
    after_two = (2 + 0.2 * (1 - 2)) + 0.3 / 0.8 * (3 - 1.8)
    ahead, back = math.log(0.8 / 0.2) - math.log(0.5 / 0.5), math.log(0.5 / 0.5) - math.log(0.2 / 0.8)
    towards = 0 + ahead / (2 * back) * (0 - 3)
    assert seen[0.2] == pytest.approx(1.8)
    assert seen[0.5] == pytest.approx(after_two)
    assert seen[0.8] == pytest.approx(after_two + 0.3 / 0.5 * (towards - after_two))


def test_dpm_solver_pp_is_diffusers():
    """Driven step by step on the same noise levels; it computes in float32."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        lower_order_final=False,
    )
    times = shifted_times(20, 0.7)
    scheduler.set_timesteps(len(times))
    scheduler.sigmas = torch.tensor([*(1 - t for t in times), 0.0])
    x_0 = randn(16, 2)
    x = x_0.float()
    for t, timestep in zip(times, scheduler.timesteps, strict=True):
        x = scheduler.step(-instantaneous(x, torch.full((16,), t)), timestep, x).prev_sample  # its velocity is -F
    torch.testing.assert_close(dpm_solver_pp(instantaneous, x_0, times).float(), x, rtol=1e-5, atol=1e-5)


def test_dpm_solver_pp_is_of_second_order_in_its_own_time():
    """Even steps of lambda, between a first and a last step that stay what they are; over even steps of t the order is
    2 up to a logarithm, for lambda is infinite at the ends."""
    x_0 = randn(64, 2)

    def solve(n):
        inner = torch.sigmoid(torch.linspace(-3, 3, n + 1, dtype=torch.float64)).tolist()
        return dpm_solver_pp(instantaneous, x_0, [0.0, *inner])

    fine = solve(5000)
    errors = [(solve(n) - fine).abs().mean().item() for n in (40, 80, 160)]
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2, 2], abs=0.15)


@pytest.mark.parametrize("n", [20, 40])
def test_dpm_solver_pp_beats_euler_on_as_many_evaluations(n):
    x_0 = randn(256, 2)
    mine, theirs = (
        (f(instantaneous, x_0, uniform_times(n)) - M - S * x_0).abs().mean() for f in (dpm_solver_pp, euler)
    )
    assert mine < theirs / 4


def test_edm_sigmas_by_hand():
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    assert edm_sigmas(4) == pytest.approx([(a + i / 3 * (b - a)) ** 7 for i in range(4)])
    assert edm_sigmas(1) == pytest.approx([80])
    assert edm_sigmas(3, 1.0, 3.0, 1.0) == pytest.approx([3, 2, 1])


def test_edm_heun_by_hand():
    """D = 1 everywhere: dy/dsigma = (y - 1)/sigma, a straight line to 1, which both of Heun's slopes hit."""
    asked = []

    def F(x, t):
        asked.append((x.item(), t.item()))
        return (1 - x) / (1 - t)[:, None]

    x_0 = torch.tensor([[2.0]], dtype=torch.float64)
    assert edm_heun(F, x_0, [3.0, 1.0]).item() == pytest.approx(1)
    y = [6.0, 6 - 2 * 5 / 3, 6 - 2 * 5 / 3]  # at sigma 3, and at 1 predicted and corrected
    expected = [(y[0] / 4, 0.25), (y[1] / 2, 0.5), (y[2] / 2, 0.5)]
    assert [v for pair in asked for v in pair] == pytest.approx([v for pair in expected for v in pair])

    # D = y/2: dy/dsigma = y/(2 sigma); from y = 6: 4 predicted, slopes 1 and 2, then 3, then half of it
    def half(x, t):
        return (x / t[:, None] / 2 - x) / (1 - t)[:, None]

    assert edm_heun(half, x_0, [3.0, 1.0]).item() == pytest.approx((6 - 2 * (1 + 2) / 2) / 2)


def test_edm_heun_error_falls_with_the_second_order():
    """Against the exact flow from where it starts, t = 1/81 with no data in the state."""
    x_0 = randn(256, 2)
    t = 1 / 81
    begin = math.sqrt((1 - t) ** 2 + (t * S) ** 2)
    exact = M + S * ((1 - t) * x_0 - t * M) / begin
    errors = [(edm_heun(instantaneous, x_0, edm_sigmas(n)) - exact).abs().mean().item() for n in (40, 80, 160)]
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2, 2], abs=0.2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: edm_sigmas(0), "0 steps make no sample"),
        (lambda: edm_sigmas(3, sigma_min=0.0), "sigma_min = 0.0"),
        (lambda: edm_sigmas(3, sigma_max=0.001), "sigma_max = 0.001"),
        (lambda: edm_sigmas(3, rho=0.0), "rho = 0.0"),
        (lambda: edm_heun(instantaneous, randn(2, 1), []), r"sigmas = \[\]"),
        (lambda: edm_heun(instantaneous, randn(2, 1), [1.0, 1.0]), r"sigmas = \[1.0, 1.0\]"),
        (lambda: edm_heun(instantaneous, randn(2, 1), [1.0, 0.0]), "stay above 0"),
    ],
)
def test_impossible_noise_levels_are_an_error_that_names_them(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(("sampler", "calls"), [(euler, 5), (heun, 9), (dpm_solver_pp, 5)])
def test_number_of_network_evaluations(sampler, calls):
    asked = []
    sampler(lambda x, t: asked.append(t) or x, randn(2, 1), uniform_times(5))
    assert len(asked) == calls
    assert max(t.max().item() for t in asked) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "sampler",
    [
        partial(consistency, fresh_noise=lambda i: torch.full((3, 2), 0.5)),
        euler,
        heun,
        dpm_solver_pp,
        lambda F, x, times: jumps(lambda x, t, r: F(x, t) + 0 * r[:, None], x, times),
        lambda F, x, times: edm_heun(F, x, [1 / (t + 0.5) for t in times]),
    ],
)
def test_the_field_is_asked_in_the_noises_dtype_without_graph_and_the_output_keeps_it(sampler, dtype):
    weight, asked = torch.nn.Parameter(torch.ones((), dtype=dtype)), []

    def F(x, t):
        asked.append((x.dtype, t.dtype, tuple(t.shape)))
        return weight * x

    out = sampler(F, randn(3, 2).to(dtype), times=[0.0, 0.5])
    assert out.dtype == dtype
    assert not out.requires_grad
    assert set(asked) == {(dtype, dtype, (3,))}


def test_the_state_is_kept_in_double_precision():
    """1000 steps of 2^-14 / 1000 on top of 1: in fp32 every one of them would be rounded away."""
    out = euler(lambda x, t: torch.full_like(x, 2.0**-14), torch.ones(1, 1), uniform_times(1000))
    assert out.item() == pytest.approx(1 + 2.0**-14, abs=1e-7)
    tiny = torch.full((1, 1), 2.0**-14)
    assert jumps(lambda x, t, r: tiny, torch.ones(1, 1), uniform_times(1000)).item() == pytest.approx(out.item())
    for sampler in (euler, heun, dpm_solver_pp, partial(consistency, fresh_noise=lambda i: randn(2, 1))):
        seen = []
        sampler(lambda x, t, seen=seen: seen.append(x) or x, torch.ones(2, 1), times=[0.0, 0.1])
        assert all(x.dtype == torch.float32 for x in seen)


# Generation

CLASSES = 3


def source_of(config, task, condition):
    return Source(config.build(), NetworkInterface(condition, task), (2,), torch.device("cpu"))


@pytest.fixture
def source():
    torch.manual_seed(0)
    return source_of(MLP(2, 16, 2, CLASSES), ExpandedInterval(), Labels(CLASSES))


def test_noise_is_a_function_of_seed_index_and_draw_alone():
    rows = noise(1, [0, 1, 2, 3], 0, (2, 3))
    assert rows.shape == (4, 2, 3)
    assert rows.dtype == torch.float32
    assert torch.equal(noise(1, [3, 1], 0, (2, 3)), rows[[3, 1]])
    others = [noise(1, [0], 1, (2, 3)), noise(2, [0], 0, (2, 3)), noise(1, [4], 0, (2, 3)), noise(0, [1], 0, (2, 3))]
    assert not any((row == other).any() for row in rows for other in others)
    assert torch.equal(rows[2], torch.randn(2, 3, generator=torch.Generator().manual_seed(derive(1, 2, 0))))


def test_noise_is_standard_normal_over_indices():
    z = noise(0, range(4000), 1, (2,))
    assert z.mean().abs().item() < 0.05
    assert z.std().item() == pytest.approx(1, abs=0.03)
    assert (z[:-1] * z[1:]).mean().abs().item() < 0.05


METHODS = [
    Consistency(1),
    Consistency(3),
    Consistency(2, shift=3.0),
    Euler(4),
    Heun(5),
    Euler(3, "anchor"),
    DPMSolverPP(5),
    EDMHeun(5),
]


@pytest.mark.parametrize("guidance", [Guidance(1.0), Guidance(2.0)])
@pytest.mark.parametrize("method", METHODS)
def test_a_sample_does_not_depend_on_its_batch(source, method, guidance):
    cond = torch.tensor([0, 1, 2, 0, 1])
    whole = sample(source, method, range(5), cond, 7, guidance)
    parts = [sample(source, method, i, cond[i], 7, guidance) for i in ([4, 0], [1], [3, 2])]
    torch.testing.assert_close(torch.cat(parts), whole[[4, 0, 1, 3, 2]])
    assert not torch.allclose(sample(source, method, range(5), cond, 8, guidance), whole)


def fields(source, cond):
    def at(head):
        return lambda x, t: source.network(x, cond=cond, **head(t))

    task = source.interface.task
    return at(task.shortcut), at(task.anchor), at(lambda t: {"t": t})


def test_methods_ask_the_right_head_with_the_right_schedule_and_draws(source):
    indices, cond = [3, 5, 6], torch.tensor([0, 2, 1])
    x_0, z = noise(4, indices, 0, (2,)), [noise(4, indices, i, (2,)) for i in range(4)]
    shortcut, anchor, native = fields(source, cond)
    expected = {
        Consistency(): consistency(shortcut, x_0, [0.0]),
        Consistency(4): consistency(shortcut, x_0, uniform_times(4), z.__getitem__),
        Consistency(2, shift=3.0): consistency(shortcut, x_0, [0.0, 0.75], z.__getitem__),
        Consistency(2, times=(0.0, 0.3)): consistency(shortcut, x_0, [0.0, 0.3], z.__getitem__),
        Euler(4): euler(native, x_0, uniform_times(4)),
        Euler(4, "anchor", 2.0): euler(anchor, x_0, shifted_times(4, 2.0)),
        Heun(7): heun(native, x_0, uniform_times(4)),
        Heun(7, "anchor", 2.0): heun(anchor, x_0, shifted_times(4, 2.0)),
        Heun(1): euler(native, x_0, [0.0]),
        DPMSolverPP(5): dpm_solver_pp(native, x_0, uniform_times(5)),
        DPMSolverPP(5, "anchor", 2.0): dpm_solver_pp(anchor, x_0, shifted_times(5, 2.0)),
        EDMHeun(7): edm_heun(native, x_0, edm_sigmas(4)),
        EDMHeun(7, "anchor", 0.01, 10.0, 3.0): edm_heun(anchor, x_0, edm_sigmas(4, 0.01, 10.0, 3.0)),
    }
    for method, out in expected.items():
        torch.testing.assert_close(sample(source, method, indices, cond, 4), out)
    assert (Euler().nfe, Heun().nfe, Consistency().nfe) == (32, 31, 1)
    assert (Jumps().nfe, DPMSolverPP().nfe, EDMHeun().nfe) == (1, 20, 35)
    assert EDMHeun() == EDMHeun(35, "native", 0.002, 80.0, 7.0)


@pytest.fixture
def told_both():
    torch.manual_seed(0)
    return source_of(MLP(2, 16, 2, CLASSES, auxiliary_time=True), AuxiliaryTime(), Labels(CLASSES))


@pytest.mark.parametrize(
    ("method", "times"),
    [
        (Jumps(), [0.0]),
        (Jumps(4), uniform_times(4)),
        (Jumps(3, 2.0), shifted_times(3, 2.0)),
        (Jumps(2, times=(0.0, 0.3)), [0.0, 0.3]),
    ],
)
def test_jumps_ask_for_the_next_time_and_may_be_guided(told_both, method, times):
    cond, null, network = torch.tensor([0, 2, 1]), torch.full((3,), CLASSES), told_both.network
    x_0 = noise(4, range(3), 0, (2,))
    expected = jumps(lambda x, t, r: network(x, t, cond, r), x_0, times)
    torch.testing.assert_close(sample(told_both, method, range(3), cond, 4), expected)

    def guided(x, t, r):
        v_c, v_u = network(x, t, cond, r), network(x, t, null, r)
        return v_u + 2.5 * (v_c - v_u) if t[0] >= 0.25 else v_c

    expected = jumps(guided, x_0, times)
    torch.testing.assert_close(sample(told_both, method, range(3), cond, 4, Guidance(2.5, 0.25)), expected)


@pytest.mark.parametrize(
    "method",
    [*(Jumps(n) for n in (1, 5)), *(DPMSolverPP(n) for n in (1, 2, 6)), *(EDMHeun(n) for n in (1, 3, 7))],
)
def test_every_method_spends_the_evaluations_that_it_says(told_both, method):
    spent = []
    told_both.network.register_forward_hook(lambda *_: spent.append(1))
    sample(told_both, method, range(3), torch.tensor([0, 2, 1]))
    assert len(spent) == method.nfe


def test_what_an_objective_has_not_trained_is_not_sampled():
    shortcut_model, imm = ShortcutModel(Labels(3)), IMM(Labels(3))
    ict = DiscreteCM(Labels(3), DoublingSteps(100, 2, 4))
    for objective, method in (
        (shortcut_model, Jumps(64)),
        (shortcut_model, Euler(128)),
        (imm, Jumps(3)),
        (imm, Consistency(3)),
        (ict, Consistency(4)),
        (FACM(Labels(3)), Consistency(9)),
        (FACM(Labels(3)), Heun(9, "anchor")),
        (MeanFlow(Labels(3), data_proportion=0.5), Euler(8)),
    ):
        method.check(as_objective(objective).interface)
    for objective, method, named in (
        (FACM(Labels(3)), Jumps(2), r"Jumps\(nfe=2.* which the network has not learned"),
        (ict, Jumps(1), "to any time, which the network has not learned"),
        (shortcut_model, Consistency(4), "to the end, which the network has not learned"),
        (ict, Consistency(5), "nfe = 5, .*ends with 4 steps"),
        (shortcut_model, Jumps(3), "nfe = 3 jumps"),
        *(
            (objective, Euler(8), "follows the flow's velocity, which the network has not learned")
            for objective in (ict, imm, ContinuousCM(Labels(3)), SCM(Labels(3)), MeanFlow(Labels(3)))
        ),
    ):
        interface = as_objective(objective).interface
        with pytest.raises(ValueError, match=named):
            method.check(interface)


def test_guided_samples(source):
    cond, null = torch.tensor([0, 2, 1]), torch.full((3,), CLASSES)
    for method, head in ((Euler(4), 2), (Euler(4, "anchor"), 1), (Consistency(4), 0)):
        conditional, unconditional = fields(source, cond)[head], fields(source, null)[head]

        def F(x, t, v_c=conditional, v_u=unconditional):
            return v_c(x, t) if t[0] < 0.3 else v_u(x, t) + 2.5 * (v_c(x, t) - v_u(x, t))

        x_0 = noise(0, range(3), 0, (2,))
        if method == Consistency(4):
            expected = consistency(F, x_0, uniform_times(4), lambda i: noise(0, range(3), i, (2,)))
        else:
            expected = euler(F, x_0, uniform_times(4))
        torch.testing.assert_close(sample(source, method, range(3), cond, 0, Guidance(2.5, 0.3)), expected)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_draws_between_steps_are_numbered_and_there_is_none_after_the_last(source, n, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "facm.sampling.generate.noise", lambda s, i, draw, shape: drawn.append(draw) or noise(s, i, draw, shape)
    )
    sample(source, Consistency(n), [0, 1], torch.tensor([0, 1]))
    assert drawn == list(range(n))


def test_native_head_of_a_network_with_a_second_time_has_r_equal_to_t():
    torch.manual_seed(0)
    source = source_of(MLP(2, 16, 2, auxiliary_time=True), AuxiliaryTime(), Unconditional())
    network = source.network
    x_0 = noise(0, range(3), 0, (2,))
    expected = euler(lambda x, t: network(x, t, None, t), x_0, uniform_times(3))
    torch.testing.assert_close(sample(source, Euler(3), range(3), None), expected)
    torch.testing.assert_close(sample(source, Euler(3, "anchor"), range(3), None), expected)
    jump = x_0 + network(x_0, torch.zeros(3), None, torch.ones(3))
    torch.testing.assert_close(sample(source, Consistency(), range(3), None), jump.detach())


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda s: Heun(4), "Heun: nfe = 4, expected an odd number"),
        (lambda s: EDMHeun(4), "EDMHeun: nfe = 4, expected an odd number"),
        (lambda s: EDMHeun(3, sigma_min=90.0).sigmas(), "sigma_min = 90.0"),
        (lambda s: sample(s, Jumps(2), [0], torch.tensor([0])), "knows a second time r, and MLPNetwork has none"),
        (lambda s: sample(s, DPMSolverPP(0), [0], torch.tensor([0])), "nfe = 0"),
        (lambda s: Jumps(3, times=(0.0, 0.5)).schedule(), r"times = \(0.0, 0.5\), expected 3 times"),
        (lambda s: Jumps(2, times=(0.5, 0.6)).schedule(), r"times = \(0.5, 0.6\), expected times that start"),
        (lambda s: Consistency(3, times=(0.0, 0.5)).schedule(), r"times = \(0.0, 0.5\), expected 3 times"),
        (
            lambda s: Consistency(2, times=(0.5, 0.6)).schedule(),
            r"times = \(0.5, 0.6\), expected times that start",
        ),
        (lambda s: sample(s, Euler(0), [0], torch.tensor([0])), "nfe = 0"),
        (lambda s: sample(s, Euler(2), [0], torch.tensor([5])), r"labels run over \[5, 5\]"),
        (lambda s: sample(s, Euler(2), [0, 1], torch.tensor([0])), r"expected \(2,\) int64"),
    ],
)
def test_an_impossible_request_is_an_error_that_names_it(source, call, named):
    with pytest.raises(ValueError, match=named):
        call(source)


def test_guidance_without_a_null_condition_is_an_error():
    source = source_of(MLP(2, 8, 1), ExpandedInterval(), Unconditional())
    with pytest.raises(ValueError, match="use guidance scale 1"):
        sample(source, Euler(2), [0], None, guidance=Guidance(2.0))


def test_a_condition_that_is_not_known_is_an_error_that_says_how_to_give_it():
    with pytest.raises(ValueError, match=r"interface.condition = None.* attribute 'condition'"):
        source_of(MLP(2, 8, 1), None, None)


def test_a_head_that_there_is_not_is_named(source):
    with pytest.raises(ValueError, match="head = 'shortcut', expected one of 'native', 'anchor'"):
        sample(source, Euler(2, "shortcut"), [0], torch.tensor([0]))


def test_a_network_without_a_task_is_asked_by_t_alone():
    torch.manual_seed(0)
    source = source_of(MLP(2, 16, 2, CLASSES), None, Labels(CLASSES))
    cond = torch.tensor([0, 2])
    x_0 = noise(0, range(2), 0, (2,))
    expected = consistency(lambda x, t: source.network(x, t, cond), x_0, [0.0])
    torch.testing.assert_close(sample(source, Consistency(), range(2), cond), expected)


def test_pictures_that_are_compared_have_balanced_labels_and_the_noise_of_their_seed(source):
    expected = sample(source, Euler(2), range(5), balanced_labels(Labels(CLASSES), range(5)), 7)
    assert torch.equal(sample_balanced(source, Euler(2), 5, 7), expected)


@dataclass(frozen=True)
class Midpoint:
    """A sampler of a user's own: the midpoint method, with ``churn`` of new noise after every step."""

    nfe: int = 4
    churn: float = 0.0

    def check(self, interface):
        if not interface.learns_flow:
            raise ValueError("Midpoint follows the flow")

    def solve(self, fields, x_0, fresh_noise):
        F, x, n = fields.velocity("native"), x_0, self.nfe // 2
        for i in range(n):
            t = torch.full((len(x),), i / n)
            half = x + F(x, t) / (2 * n)
            x = x + F(half, t + 1 / (2 * n)) / n + self.churn * fresh_noise(i + 1)
        return x


def test_a_sampler_of_ones_own_is_a_method_like_the_others(source):
    cond = torch.tensor([0, 2, 1])
    x, z = noise(4, range(3), 0, (2,)), noise(4, range(3), 1, (2,))

    def F(x, t):
        t, null = torch.full((3,), t), torch.full((3,), CLASSES)
        v_c, v_u = source.network(x, t, cond), source.network(x, t, null)
        return v_u + 2.5 * (v_c - v_u)

    with torch.no_grad():
        expected = x + F(x + F(x, 0.0) / 2, 0.5) + 0.1 * z
        found = sample(source, Midpoint(2, churn=0.1), range(3), cond, 4, Guidance(2.5, 0.0))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        fine = sample(source, Euler(512), range(3), cond, 4)
        assert (sample(source, Midpoint(16), range(3), cond, 4) - fine).abs().max() < (
            sample(source, Euler(16), range(3), cond, 4) - fine
        ).abs().max()
    Midpoint().check(as_objective(FACM(Labels(3))).interface)
    with pytest.raises(ValueError, match="Midpoint follows the flow"):
        Midpoint().check(as_objective(SCM(Labels(3))).interface)


@pytest.mark.parametrize(
    ("objective", "method"),
    [
        (FACM(Labels(3)), Consistency(2)),
        (IMM(Labels(3)), Consistency(2)),
        (ShortcutModel(Labels(3)), Jumps(2)),
        (FlowMatching(Labels(3)), Euler(2)),
        (lambda network, batch, rng, teacher=None: None, Euler(2)),
    ],
)
def test_the_default_method_is_what_the_network_has_learned(objective, method):
    assert default_method(as_objective(objective).interface, 2) == method

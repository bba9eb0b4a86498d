"""Samplers: exact where theory says so, of the order that theory says, and by hand; and the samples built on them."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from facm.conditions import Labels, Unconditional
from facm.generate import Consistency, Euler, Heun, Source, balanced_labels, noise, sample, sample_many
from facm.guidance import Guidance
from facm.networks.mlp import MLP
from facm.samplers import check_times, consistency, euler, heun, shifted_times, uniform_times
from facm.seeding import derive
from facm.tasks import AuxiliaryTime, ExpandedInterval

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


@pytest.mark.parametrize("sampler", [lambda F, x, t: consistency(F, x, t, lambda i: x), euler, heun])
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


@pytest.mark.parametrize(("sampler", "calls"), [(euler, 5), (heun, 9)])
def test_number_of_network_evaluations(sampler, calls):
    asked = []
    sampler(lambda x, t: asked.append(t) or x, randn(2, 1), uniform_times(5))
    assert len(asked) == calls
    assert max(t.max().item() for t in asked) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sampler", [partial(consistency, fresh_noise=lambda i: torch.full((3, 2), 0.5)), euler, heun])
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
    for sampler in (euler, heun, partial(consistency, fresh_noise=lambda i: randn(2, 1))):
        seen = []
        sampler(lambda x, t, seen=seen: seen.append(x) or x, torch.ones(2, 1), times=[0.0, 0.1])
        assert all(x.dtype == torch.float32 for x in seen)


# Generation

CLASSES = 3


@pytest.fixture
def source():
    torch.manual_seed(0)
    return Source(MLP(2, 16, 2, CLASSES).build(), ExpandedInterval(), Labels(CLASSES), (2,), torch.device("cpu"))


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


METHODS = [Consistency(1), Consistency(3), Consistency(2, shift=3.0), Euler(4), Heun(5), Euler(3, "anchor")]


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

    return at(source.task.shortcut), at(source.task.anchor), at(lambda t: {"t": t})


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
    }
    for method, out in expected.items():
        torch.testing.assert_close(sample(source, method, indices, cond, 4), out)
    assert (Euler().nfe, Heun().nfe, Consistency().nfe) == (32, 31, 1)


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
    monkeypatch.setattr("facm.generate.noise", lambda s, i, draw, shape: drawn.append(draw) or noise(s, i, draw, shape))
    sample(source, Consistency(n), [0, 1], torch.tensor([0, 1]))
    assert drawn == list(range(n))


def test_native_head_of_a_network_with_a_second_time_has_r_equal_to_t():
    torch.manual_seed(0)
    network = MLP(2, 16, 2, auxiliary_time=True).build()
    source = Source(network, AuxiliaryTime(), Unconditional(), (2,), torch.device("cpu"))
    x_0 = noise(0, range(3), 0, (2,))
    expected = euler(lambda x, t: network(x, t, None, t), x_0, uniform_times(3))
    torch.testing.assert_close(sample(source, Euler(3), range(3), None), expected)
    torch.testing.assert_close(sample(source, Euler(3, "anchor"), range(3), None), expected)
    jump = x_0 + network(x_0, torch.zeros(3), None, torch.ones(3))
    torch.testing.assert_close(sample(source, Consistency(), range(3), None), jump.detach())


def test_many_samples_come_in_batches_with_balanced_labels(source):
    batches = list(sample_many(source, Consistency(2), 8, seed=5, batch_size=3))
    assert [len(x) for x, _ in batches] == [3, 3, 2]
    labels = torch.cat([y for _, y in batches])
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), sample(source, Consistency(2), range(8), labels, 5))
    assert balanced_labels(Unconditional(), range(3)) is None


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda s: Heun(4), "nfe = 4 with Heun, expected an odd number"),
        (lambda s: Consistency(3, times=(0.0, 0.5)).schedule(), r"times = \(0.0, 0.5\) for nfe = 3"),
        (lambda s: Consistency(2, times=(0.5, 0.6)).schedule(), r"times = \[0.5, 0.6\]"),
        (lambda s: sample(s, Euler(0), [0], torch.tensor([0])), "nfe = 0"),
        (lambda s: sample(s, Euler(2), [0], torch.tensor([5])), r"labels run over \[5, 5\]"),
        (lambda s: sample(s, Euler(2), [0, 1], torch.tensor([0])), r"expected \(2,\) int64"),
        (lambda s: next(sample_many(s, Euler(2), 0)), "n = 0"),
    ],
)
def test_an_impossible_request_is_an_error_that_names_it(source, call, named):
    with pytest.raises(ValueError, match=named):
        call(source)


def test_guidance_without_a_null_condition_is_an_error():
    network = MLP(2, 8, 1).build()
    source = Source(network, ExpandedInterval(), Unconditional(), (2,), torch.device("cpu"))
    with pytest.raises(ValueError, match="use guidance scale 1"):
        sample(source, Euler(2), [0], None, guidance=Guidance(2.0))

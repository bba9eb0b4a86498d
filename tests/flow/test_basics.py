"""Paths, times, weights, distances, conditions, tasks and seeds: each against its formula, by hand or in a loop."""

import math
from statistics import NormalDist

import pytest
import torch

from facm.core.modules import blocks_of
from facm.core.rng import derive
from facm.core.tensors import at_least_float32, check_same_shape, check_time, expand
from facm.core.types import Batch
from facm.flow import paths
from facm.flow.conditions import Labels, Unconditional
from facm.flow.distances import L2, L2Cosine, NormL2, Scaled, cosine_distance, mean_square
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval, check_task, native
from facm.flow.times import ArctanLogNormal, LogitNormal, Uniform
from facm.flow.weighting import Cosine, One, OneMinusPower
from facm.networks.mlp import MLP


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


# Types


def test_expand_adds_axes_behind_the_batch():
    t, x = torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, 4, 5, 6)
    assert expand(t, x).shape == (3, 1, 1, 1)
    assert expand(t, torch.zeros(3, 2)).shape == (3, 1)
    assert torch.equal(expand(t, x)[:, 0, 0, 0], t)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (1, 3), (4,)])
def test_a_time_of_a_wrong_shape_is_an_error_and_no_broadcast(shape):
    with pytest.raises(ValueError, match=r"t has shape .*expected \(3,\)"):
        check_time(torch.full(shape, 0.5), torch.zeros(3, 2))


@pytest.mark.parametrize("bad", [-1e-3, 1.001, math.nan])
def test_a_time_outside_the_unit_interval_is_an_error_that_names_it(bad):
    with pytest.raises(ValueError, match=r"s runs over .*\[0, 1\]"):
        check_time(torch.tensor([0.5, bad, 0.5]), torch.zeros(3, 2), "s")


def test_the_ends_of_the_unit_interval_are_times_and_high_moves_the_end():
    check_time(torch.tensor([0.0, 1.0]), torch.zeros(2, 2))
    check_time(torch.tensor([0.0, 2.0]), torch.zeros(2, 2), high=2.0)
    check_time(torch.zeros(0), torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"\[0, 2\]"):
        check_time(torch.tensor([2.1]), torch.zeros(1, 2), high=2.0)


def test_unequal_shapes_are_named_in_the_error():
    check_same_shape(a=torch.zeros(2, 3), b=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"a \(2, 3\), b \(2, 1\)"):
        check_same_shape(a=torch.zeros(2, 3), b=torch.zeros(2, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_is_lifted_to_float32_and_nothing_is_lowered(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == expected


def test_a_batch_on_another_device_is_the_same_part_of_its_step():
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 4, 8).to("meta")
    assert batch.x_1.is_meta
    assert batch.cond.is_meta
    assert (batch.start, batch.of) == (4, 8)
    assert Batch(torch.zeros(2, 3)).to("meta").cond is None
    assert (Batch(torch.zeros(2, 3)).start, Batch(torch.zeros(2, 3)).of) == (0, None)


# Blocks


class Nested(torch.nn.Module):
    """Two lists of blocks, one of which holds lists itself; one entry without parameters."""

    def __init__(self):
        super().__init__()
        entry = lambda: torch.nn.Linear(2, 2)  # noqa: E731
        inner = torch.nn.Sequential(torch.nn.ModuleList([entry(), entry()]), entry())
        self.first, self.down = entry(), torch.nn.ModuleList([inner, torch.nn.SiLU(), entry()])
        self.part = torch.nn.Module()
        self.part.up = torch.nn.ModuleList([entry(), entry()])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), ["down.0", "down.2", "part.up.0", "part.up.1"]),
        (("part.up",), ["part.up.0", "part.up.1"]),
        (("part.up.1", "first"), ["part.up.1", "first"]),
        (("down.0.0", "down.2", "down.1"), ["down.0.0.0", "down.0.0.1", "down.2"]),
        (("first", "part.up"), ["first", "part.up.0", "part.up.1"]),
    ],
)
def test_blocks_are_the_entries_of_the_outermost_lists_or_what_is_named(names, expected):
    network = Nested()
    found = blocks_of(network, names)
    assert list(found) == expected
    assert all(module is network.get_submodule(name) for name, module in found.items())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("up",), "Nested has no module 'up'; it has down, down.0.0, part.up"),
        (("first", "first"), "'first' and 'first' overlap"),
        (("down.0", "down.0.1"), "'down.0.1' and 'down.0' overlap"),
        (("down.0.1", "down.0"), "'down.0' and 'down.0.1' overlap"),
    ],
)
def test_blocks_that_are_none_or_overlap_are_an_error_that_names_them(names, message):
    with pytest.raises(ValueError, match=message):
        blocks_of(Nested(), names)


def test_names_that_only_begin_alike_do_not_overlap():
    network = torch.nn.ModuleDict({"up": torch.nn.Linear(2, 2), "up_2": torch.nn.Linear(2, 2)})
    assert list(blocks_of(network, ("up", "up_2"))) == ["up", "up_2"]
    assert list(blocks_of(network, ("up_2", "up"))) == ["up_2", "up"]
    assert blocks_of(network) == {}


# Paths


def test_the_path_runs_from_noise_to_data_with_constant_velocity():
    x_0, x_1 = randn(3, 2, seed=1), randn(3, 2, seed=2)
    assert torch.equal(paths.interpolate(x_0, x_1, torch.zeros(3)), x_0)
    assert torch.equal(paths.interpolate(x_0, x_1, torch.ones(3)), x_1)
    t = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    x_t = paths.interpolate(x_0, x_1, t)
    for i in range(3):
        torch.testing.assert_close(x_t[i], (1 - t[i]) * x_0[i] + t[i] * x_1[i])
    h = 1e-6
    slope = (paths.interpolate(x_0, x_1, t + h) - paths.interpolate(x_0, x_1, t - h)) / (2 * h)
    torch.testing.assert_close(paths.velocity(x_0, x_1), slope)


def test_x_1_is_recovered_from_the_velocity():
    x_0, x_1 = randn(5, 3, 2, seed=1), randn(5, 3, 2, seed=2)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    x_t, v = paths.interpolate(x_0, x_1, t), paths.velocity(x_0, x_1)
    torch.testing.assert_close(paths.x_1_from_velocity(x_t, v, t), x_1)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: paths.interpolate(a, b, torch.zeros(2)),
        paths.velocity,
        lambda a, b: paths.x_1_from_velocity(a, b, torch.full((2,), 0.5)),
    ],
)
def test_paths_refuse_to_broadcast(function):
    with pytest.raises(ValueError, match="expected equal shapes"):
        function(torch.zeros(2, 3), torch.zeros(2, 1))


def test_the_path_checks_its_time():
    with pytest.raises(ValueError, match="one time per sample"):
        paths.interpolate(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1))
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        paths.interpolate(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0.5, 1.5]))


# Times

DISTRIBUTIONS = [Uniform(), Uniform(0.2, 0.6), LogitNormal(0.4, 0.7), ArctanLogNormal(-1.0, 1.4)]


def quantile(time, q):
    """In closed form. Both normal families are decreasing in z."""
    z = NormalDist().inv_cdf(1 - q)
    if isinstance(time, Uniform):
        return time.low + q * (time.high - time.low)
    if isinstance(time, LogitNormal):
        return 1 / (1 + math.exp(-(time.mean - time.std * z)))
    return 1 - 2 / math.pi * math.atan(math.exp(time.mean + time.std * z))


@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_sampled_times_have_the_distributions_quantiles(time):
    t = time.sample(40_000, generator())
    assert t.shape == (40_000,)
    assert t.dtype == torch.float32
    assert t.min() >= 0
    assert t.max() <= 1
    for q in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98):
        assert t.quantile(q).item() == pytest.approx(quantile(time, q), abs=0.01)


@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_times_are_a_function_of_the_generator_alone(time):
    torch.manual_seed(1)
    first, state = time.sample(16, generator(3)), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, time.sample(16, generator(3)))
    assert not torch.equal(first, time.sample(16, generator(4)))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_median_of_the_papers_times_is_nearer_to_data():
    assert ArctanLogNormal(-0.8, 1.6).from_normal(torch.zeros(1)).item() == pytest.approx(0.7312, abs=1e-4)
    assert ArctanLogNormal() == ArctanLogNormal(-0.8, 1.6)
    assert LogitNormal(0.8, 1.6).from_normal(torch.zeros(1)).item() == pytest.approx(1 / (1 + math.exp(-0.8)))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Uniform(0.5, 0.5), "low = 0.5, high = 0.5"),
        (lambda: Uniform(-0.1, 0.5), "low = -0.1"),
        (lambda: Uniform(0.1, 1.5), "high = 1.5"),
        (lambda: LogitNormal(0, 0), "LogitNormal: std = 0"),
        (lambda: ArctanLogNormal(0, -1), "ArctanLogNormal: std = -1"),
        (lambda: OneMinusPower(0), "OneMinusPower: p = 0"),
        (lambda: NormL2(p=-0.1), "NormL2: p = -0.1"),
        (lambda: NormL2(c=0), "c = 0"),
        (lambda: Labels(0), "classes = 0"),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(make, named):
    with pytest.raises(ValueError, match=named):
        make()


# Weights


def test_weights_are_those_of_table_4():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for i, s in enumerate(t.tolist()):
        assert One()(t)[i].item() == 1
        assert OneMinusPower(0.5)(t)[i].item() == pytest.approx(1 - math.sqrt(s))
        assert OneMinusPower(2.0)(t)[i].item() == pytest.approx(1 - s * s)
        assert Cosine()(t)[i].item() == pytest.approx(math.cos(math.pi * s / 2), abs=1e-12)
    assert OneMinusPower() == OneMinusPower(0.5)


# Distances


def slow_mean_square(a, b):
    return sum((p - q) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / a.numel()


def slow_cosine(a, b):
    a, b = a.flatten().tolist(), b.flatten().tolist()
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(q * q for q in b))


def slow_distance(a, b, flat):
    cosines = [slow_cosine(a, b) if flat else slow_cosine(a[:, i, j], b[:, i, j]) for i in range(3) for j in range(2)]
    return slow_mean_square(a, b) + sum(1 - c for c in cosines) / len(cosines)


@pytest.mark.parametrize(("channels", "flat"), [(1, True), (3, True), (4, False), (5, False)])
def test_cosine_is_over_the_channels_from_four_on_and_flat_below(channels, flat):
    a, b = randn(4, channels, 3, 2, seed=1), randn(4, channels, 3, 2, seed=2)
    expected = torch.tensor([slow_distance(p, q, flat) for p, q in zip(a, b, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(L2Cosine()(a, b), expected)
    torch.testing.assert_close(L2Cosine(flat=flat)(a, b), expected)
    if channels > 1:
        assert not torch.allclose(L2Cosine(flat=not flat)(a, b), expected)


@pytest.mark.parametrize("flat", [False, True])
def test_cosine_distance_follows_the_switch_at_any_number_of_channels(flat):
    a, b = randn(4, 5, 3, 2, seed=1), randn(4, 5, 3, 2, seed=2)
    expected = [slow_distance(p, q, flat) - slow_mean_square(p, q) for p, q in zip(a, b, strict=True)]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(cosine_distance(a, b, flat), expected)
    torch.testing.assert_close(L2Cosine(flat=flat)(a, b), expected + mean_square(a, b))


def test_cosine_distance_is_none_along_and_two_against():
    a = randn(3, 4, 2, 2)
    torch.testing.assert_close(cosine_distance(3 * a, a, flat=False), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(cosine_distance(-a, a, flat=True), torch.full((3,), 2.0, dtype=torch.float64))


def test_mean_square_is_a_mean_over_the_sample():
    a, b = randn(4, 2, 3, seed=1), randn(4, 2, 3, seed=2)
    expected = torch.tensor([slow_mean_square(p, q) for p, q in zip(a, b, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(mean_square(a, b), expected)
    torch.testing.assert_close(L2()(a, b), expected)


@pytest.mark.parametrize(("p", "c"), [(0.5, 1e-3), (1.0, 1e-3), (0.0, 1e-3), (0.5, 0.3)])
def test_normalised_distance_and_its_gradient_with_the_weight_frozen(p, c):
    a, b = (0.2 * randn(4, 3, seed=1)).requires_grad_(), 0.2 * randn(4, 3, seed=2)
    d = NormL2(p, c)(a, b)
    d.sum().backward()
    for i in range(4):
        e = slow_mean_square(a[i], b[i])
        assert d[i].item() == pytest.approx(e / (e + c) ** p, rel=1e-12)
        expected = 2 * (a[i] - b[i]).detach() / 3 / (e + c) ** p
        torch.testing.assert_close(a.grad[i], expected)
    assert NormL2() == NormL2(0.5, 1e-3)


@pytest.mark.parametrize("distance", [L2(), L2Cosine(), NormL2(0.5)])
@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_a_scaled_distance_and_its_gradient_are_so_many_times_it(distance, weight):
    a, b = randn(4, 5, 2, seed=1).requires_grad_(), randn(4, 5, 2, seed=2)
    found, plain = Scaled(distance, weight)(a, b), distance(a, b)
    assert found.shape == (4,)
    torch.testing.assert_close(found, weight * plain)
    own, theirs = (torch.autograd.grad(d.sum(), a, retain_graph=True)[0] for d in (found, plain))
    torch.testing.assert_close(own, weight * theirs)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_a_weight_that_leaves_no_distance_is_an_error(weight):
    with pytest.raises(ValueError, match=r"Scaled: weight = .*, expected a positive number; FACM without"):
        Scaled(L2(), weight)


@pytest.mark.parametrize("distance", [L2(), L2Cosine(), L2Cosine(flat=True), NormL2(), Scaled(L2(), 2.0)])
def test_distances_refuse_to_broadcast(distance):
    with pytest.raises(ValueError, match="expected equal shapes"):
        distance(torch.zeros(2, 4, 3), torch.zeros(2, 4, 1))


# Conditions


def test_the_null_label_follows_the_last_class():
    assert Labels(10).null(torch.tensor([0, 3, 9])).tolist() == [10, 10, 10]


@pytest.mark.parametrize("labels", [[0, 9], [10, 3]])
def test_labels_and_the_null_label_are_accepted(labels):
    Labels(10).check(torch.tensor(labels), 2)


@pytest.mark.parametrize(
    ("cond", "named"),
    [
        (torch.tensor([-1, 3]), r"\[-1, 3\].*\[0, 9\]"),
        (torch.tensor([3, 11]), r"\[3, 11\].*\[0, 9\]"),
        (torch.tensor([3]), r"\(1,\).*expected \(2,\)"),
        (torch.tensor([[3], [3]]), r"expected \(2,\)"),
        (torch.tensor([3, 3], dtype=torch.int32), "int32"),
        (None, "no labels"),
    ],
)
def test_labels_out_of_range_or_of_a_wrong_shape_are_an_error_that_names_them(cond, named):
    with pytest.raises(ValueError, match=named):
        Labels(10).check(cond, 2)


def test_without_labels_there_is_no_null():
    with pytest.raises(ValueError, match="no labels"):
        Labels(10).null(None)
    with pytest.raises(ValueError, match="no null condition"):
        Unconditional().null(None)


def test_dropping_replaces_the_marked_labels_and_only_those():
    cond = torch.arange(200) % 10
    dropped = torch.arange(200) % 3 == 0
    out = Labels(10).drop(cond, dropped)
    assert (out[dropped] == 10).all()
    assert torch.equal(out[~dropped], cond[~dropped])


def test_unconditional_data_has_no_labels_to_drop():
    Unconditional().check(None, 3)
    with pytest.raises(ValueError, match="use label_dropout 0"):
        Unconditional().drop(None, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="batch has conditions"):
        Unconditional().check(torch.zeros(3), 3)


# Tasks


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


# Seeds


def test_seeds_are_a_function_of_every_part_and_of_their_order():
    assert derive(1, 2, 3) == derive(1, 2, 3)
    assert len({derive(1, 2, 3), derive(3, 2, 1), derive(1, 2), derive(1, 2, 4), derive(0, 2, 3)}) == 5
    assert all(0 <= derive(i) < 2**63 for i in range(200))
    assert max(derive(i) for i in range(200)) > 2**62
    with pytest.raises(ValueError, match=r"\(1, -2\)"):
        derive(1, -2)

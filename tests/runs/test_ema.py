"""Power-function EMA against its integral, and post-hoc synthesis."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from facm.networks.lightning_dit import LightningDiT
from facm.runs.ema import EMA, PowerEMA, Snapshot, decay, gamma_of, synthesis_weights, synthesise

LENGTHS = [0.02, 0.05, 0.1, 0.2, 0.25]


# The profile


def profile(gamma, n=200_001):
    """tau^gamma on [0, 1], normalised, on a fine grid of midpoints."""
    tau = (np.arange(n) + 0.5) / n
    p = tau**gamma
    return tau, p / p.sum()


@pytest.mark.parametrize("sigma_rel", LENGTHS)
def test_the_profile_has_the_wanted_relative_standard_deviation(sigma_rel):
    tau, p = profile(gamma_of(sigma_rel))
    mean = (p * tau).sum()
    assert math.sqrt((p * (tau - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-4)


def test_published_exponents():
    """EDM2, App. C: sigma_rel 0.05 and 0.1 are gamma 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.1) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(0.28) > 0


@pytest.mark.parametrize("bad", [0.0, -0.1, 0.29, float("nan")])
def test_an_impossible_length_is_an_error_that_names_it(bad):
    with pytest.raises(ValueError, match=f"sigma_rel = {bad}"):
        gamma_of(bad)
    with pytest.raises(ValueError, match=rf"PowerEMA: sigma_rels = \(0.1, {bad}\), expected a tuple"):
        PowerEMA((0.1, bad))


def test_impossible_configurations():
    with pytest.raises(ValueError, match=r"sigma_rels = \(\), expected a tuple of a length within \[1, 32\]"):
        PowerEMA(())
    with pytest.raises(ValueError, match=r"\(0.1, 0.1\), expected different lengths"):
        PowerEMA((0.1, 0.1))
    assert PowerEMA().sigma_rels == (0.05, 0.2)


class Scalar(nn.Module):
    def __init__(self, size=1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("sigma_rel", LENGTHS)
def test_running_average_weights_the_past_by_the_integral_of_the_profile(sigma_rel, batch_size):
    """The weights of step k are a unit vector e_k: the average reads off each step's share, which is the integral of
    tau^gamma over [k, k + 1] (from 0 for the first), on [0, n + 1]."""
    n, module = 60, Scalar(60)
    ema = EMA(PowerEMA((sigma_rel,)), module)
    for k in range(1, n + 1):
        module.weight.data = nn.functional.one_hot(torch.tensor(k - 1), n).double()
        ema.update(k * batch_size, batch_size)
    power = gamma_of(sigma_rel) + 1
    edges = np.array([0, *range(2, n + 2)]) / (n + 1)
    share = ema.averages[sigma_rel]["weight"].numpy()
    np.testing.assert_allclose(share, np.diff(edges**power), rtol=1e-10, atol=1e-15)
    assert share.sum() == pytest.approx(1)
    tau = (np.arange(2, n + 2) - 0.5) / (n + 1)
    spread = math.sqrt((share * (tau - (share * tau).sum()) ** 2).sum())
    assert spread == pytest.approx(sigma_rel, abs=0.006)


def test_decay_of_a_step():
    assert decay(0.1, 32, 32) == 0
    assert decay(0.1, 31, 32) == 0
    assert decay(0.1, 64, 32) == pytest.approx((2 / 3) ** (gamma_of(0.1) + 1))
    assert decay(0.1, 6400, 32) == pytest.approx((200 / 201) ** (gamma_of(0.1) + 1))


def test_first_update_forgets_the_initial_weights():
    module = Scalar()
    module.weight.data.fill_(100.0)
    ema = EMA(PowerEMA((0.05, 0.2)), module)
    assert ema.averages[0.05]["weight"].item() == 100
    module.weight.data.fill_(3.0)
    ema.update(8, 8)
    assert [average["weight"].item() for average in ema.averages.values()] == [3, 3]
    module.weight.data.fill_(4.0)
    ema.update(16, 8)
    for sigma_rel in (0.05, 0.2):
        beta = (2 / 3) ** (gamma_of(sigma_rel) + 1)
        assert ema.averages[sigma_rel]["weight"].item() == pytest.approx(beta * 3 + (1 - beta) * 4)
    assert module.weight.item() == 4
    assert not ema.averages[0.05]["weight"].requires_grad


def test_averages_are_copies_and_buffers_and_frozen_parameters_follow_the_network():
    network = nn.BatchNorm1d(2)
    network.bias.requires_grad_(False)
    ema = EMA(PowerEMA((0.2,)), network)
    for k in range(1, 4):
        network.weight.data.fill_(float(k))
        network.bias.data.fill_(10.0 * k)
        network.running_mean.fill_(100.0 * k)
        network.num_batches_tracked.fill_(k)
        ema.update(k, 1)
    average = ema.averages[0.2]
    assert 1 < average["weight"][0] < 3
    assert average["bias"].tolist() == [30, 30]
    assert average["running_mean"].tolist() == [300, 300]
    assert average["num_batches_tracked"].item() == 3
    network.running_mean.fill_(0.0)
    assert average["running_mean"].tolist() == [300, 300]


def test_tied_parameters_are_averaged_under_both_names():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    network[1].weight = network[0].weight
    ema = EMA(PowerEMA((0.2,)), network)
    for k in range(1, 4):
        network[0].weight.data.fill_(float(k))
        ema.update(k, 1)
    average = ema.averages[0.2]
    assert average.keys() == {"0.weight", "1.weight"}
    assert torch.equal(average["0.weight"], average["1.weight"])
    assert 1 < average["1.weight"][0, 0] < 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_half_precision_are_averaged_in_float32(dtype):
    """A step's share is 1e-5 of the difference: in the weights' own precision the average would never move."""

    def averaged(dtype):
        module = nn.BatchNorm1d(2).to(dtype)
        module.bias.requires_grad_(False)
        ema = EMA(PowerEMA((0.05,)), module)
        module.weight.data.fill_(2.0)
        for step in range(1, 2001):
            ema.update(1_000_000 + 128 * step, 128)
        return ema.averages[0.05]

    average = averaged(dtype)
    assert {name: value.dtype for name, value in average.items() if name != "num_batches_tracked"} == {
        "weight": torch.float32,
        "bias": dtype,
        "running_mean": dtype,
        "running_var": dtype,
    }
    assert torch.equal(average["weight"], averaged(torch.float32)["weight"])
    assert average["weight"][0] == pytest.approx(1.98, abs=0.01)


def test_snapshots_of_half_precision_and_of_more_are_synthesised_together():
    """Earlier versions kept the averages of bfloat16 weights in bfloat16."""
    states = [{"weight": torch.full((2,), 1.0, dtype=torch.bfloat16)}, {"weight": torch.full((2,), 3.0)}]
    snapshots = [Snapshot(10, s, lambda state=state: state) for s, state in zip((0.05, 0.2), states, strict=True)]
    weights = synthesis_weights([(10, 0.05), (10, 0.2)], 10, 0.1)
    out = synthesise(snapshots, 10, 0.1)["weight"]
    assert out.dtype == torch.float32
    assert out[0].item() == pytest.approx(weights[0] + 3 * weights[1], rel=1e-6)


def test_complex_weights_are_synthesised_too():
    states = [{"weight": torch.full((2,), value)} for value in (1 + 2j, 3 - 1j)]
    snapshots = [Snapshot(10, s, lambda state=state: state) for s, state in zip((0.05, 0.2), states, strict=True)]
    weights = synthesis_weights([(10, 0.05), (10, 0.2)], 10, 0.1)
    out = synthesise(snapshots, 10, 0.1)["weight"]
    assert out.dtype == torch.complex64
    assert out[0].item() == pytest.approx(weights[0] * (1 + 2j) + weights[1] * (3 - 1j), rel=1e-5)


# Post-hoc synthesis


def tracked(steps=64, every=8, lengths=(0.05, 0.2), module=None, change=None):
    """Snapshots of a run whose weights move, and the running averages at its end, for any lengths."""
    module = module or Scalar()
    change = change or (lambda m, k: m.weight.data.fill_(math.sqrt(k) + math.sin(k / 9)))
    ema, snapshots = EMA(PowerEMA(lengths), module), []
    for k in range(1, steps + 1):
        change(module, k)
        ema.update(k, 1)
        if k % every == 0:
            for sigma_rel, average in ema.averages.items():
                frozen = {name: value.clone() for name, value in average.items()}
                snapshots.append(Snapshot(k, sigma_rel, lambda frozen=frozen: frozen))
    return ema, snapshots


@pytest.mark.parametrize("images_seen", [32, 64])
@pytest.mark.parametrize("sigma_rel", [0.05, 0.2])
def test_synthesis_of_a_tracked_length_is_its_snapshot(images_seen, sigma_rel):
    _, snapshots = tracked()
    exact = next(s for s in snapshots if (s.images_seen, s.sigma_rel) == (images_seen, sigma_rel))
    out = synthesise(snapshots, images_seen, sigma_rel)["weight"].item()
    assert out == pytest.approx(exact.load()["weight"].item(), rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.07, 0.1, 0.15, 0.25])
def test_synthesis_comes_close_to_the_average_that_was_not_tracked(sigma_rel):
    wanted, _ = tracked(lengths=(sigma_rel,))
    _, snapshots = tracked()
    expected = wanted.averages[sigma_rel]["weight"].item()
    others = [tracked(lengths=(other,))[0].averages[other]["weight"].item() for other in (0.05, 0.2)]
    assert min(abs(other - expected) for other in others) > 0.05
    assert synthesise(snapshots, 64, sigma_rel)["weight"].item() == pytest.approx(expected, abs=0.02)


def test_coefficients_are_those_of_the_least_squares_fit_of_profiles():
    """Against a fit on a fine grid, with no closed form."""
    snapshots = [(t, s) for t in (20, 40, 60) for s in (0.05, 0.2)]
    few = snapshots[-2:]
    grid = (np.arange(120_000) + 0.5) / 120_000 * 60

    def sampled(t, sigma_rel):
        gamma = gamma_of(sigma_rel)
        return np.where(grid <= t, (gamma + 1) * grid**gamma / t ** (gamma + 1), 0)

    columns = np.stack([sampled(*s) for s in snapshots], axis=1)
    for images_seen, sigma_rel in ((60, 0.12), (60, 0.25), (55, 0.1)):
        expected, *_ = np.linalg.lstsq(columns, sampled(images_seen, sigma_rel), rcond=None)
        np.testing.assert_allclose(synthesis_weights(snapshots, images_seen, sigma_rel), expected, atol=2e-3)
    for chosen in (snapshots, few):  # those that sum to 1: the last coefficient is 1 minus the others
        columns = np.stack([sampled(*s) for s in chosen], axis=1)
        for images_seen, sigma_rel in ((60, 0.12), (60, 0.25), (55, 0.1)):
            wanted = sampled(images_seen, sigma_rel) - columns[:, -1]
            free, *_ = np.linalg.lstsq(columns[:, :-1] - columns[:, -1:], wanted, rcond=None)
            expected = [*free, 1 - free.sum()]
            found = synthesis_weights(chosen, images_seen, sigma_rel, unit_sum=True)
            np.testing.assert_allclose(found, expected, atol=2e-3)
            assert found.sum() == pytest.approx(1, abs=1e-9)


def test_weights_that_never_move_much_keep_their_size_where_coefficients_sum_to_one():
    _, snapshots = tracked(16, 8, change=lambda m, k: m.weight.data.fill_(100 + math.sqrt(k) / 100))
    assert synthesise(snapshots, 16, 0.1, unit_sum=True)["weight"].item() == pytest.approx(100.03, abs=0.02)
    assert abs(synthesise(snapshots, 16, 0.1)["weight"].item() - 100.03) > 0.2
    exact = next(s for s in snapshots if (s.images_seen, s.sigma_rel) == (16, 0.2)).load()["weight"].item()
    assert synthesise(snapshots, 16, 0.2, unit_sum=True)["weight"].item() == pytest.approx(exact, rel=1e-9)


def test_snapshots_after_the_wanted_moment_are_left_out():
    _, snapshots = tracked()
    early = [s for s in snapshots if s.images_seen <= 32]
    poisoned = [s if s in early else Snapshot(s.images_seen, s.sigma_rel, lambda: 1 / 0) for s in snapshots]
    out, expected = synthesise(poisoned, 32, 0.1)["weight"], synthesise(early, 32, 0.1)["weight"]
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="no snapshots"):
        synthesise(snapshots, 7, 0.1)


def test_synthesis_leaves_frozen_tables_as_they_are():
    network = LightningDiT(4, 2, 3, 16, 1, 2, num_classes=2).build()

    def change(module, k):
        module.t_embedder.mlp[0].weight.data.fill_(math.sqrt(k))

    _, snapshots = tracked(40, 10, (0.05, 0.2), network, change)
    out = synthesise(snapshots, 40, 0.1)
    assert out.keys() == network.state_dict().keys()
    for name in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin", "blocks.0.norm1.weight"):
        if name in out:
            assert torch.equal(out[name], network.state_dict()[name])
    assert 4 < out["t_embedder.mlp.0.weight"][0, 0] < math.sqrt(40)
    assert out["t_embedder.mlp.0.weight"].dtype == torch.float32


def test_what_is_not_floating_point_comes_from_the_latest_snapshot():
    network = nn.BatchNorm1d(2)

    def change(module, k):
        module.num_batches_tracked.fill_(k)
        module.weight.data.fill_(float(k))

    _, snapshots = tracked(20, 10, (0.05, 0.2), network, change)
    assert synthesise(snapshots, 20, 0.1)["num_batches_tracked"].item() == 20


def test_a_synthesis_sums_in_double_precision_and_keeps_the_dtype():
    states = [{"weight": torch.full((2,), value, dtype=torch.float16)} for value in (1.0, 3.0)]
    snapshots = [Snapshot(10, s, lambda state=state: state) for s, state in zip((0.05, 0.2), states, strict=True)]
    weights = synthesis_weights([(10, 0.05), (10, 0.2)], 10, 0.1)
    out = synthesise(snapshots, 10, 0.1)["weight"]
    assert out.dtype == torch.float16
    assert out[0].item() == pytest.approx(weights[0] + 3 * weights[1], rel=1e-3)

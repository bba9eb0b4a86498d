"""Frechet distance and moments against closed forms, torchmetrics and numpy."""

import warnings

import numpy as np
import pytest
import torch

from facm.evaluation import Moments, frechet_distance
from tests.evaluation.evaluation_parts import torch_fidelity, torchmetrics_image


def moments_of(*blocks):
    moments = Moments(blocks[0].shape[1])
    for block in blocks:
        moments.add(block)
    return moments


def distance(a, b):
    a, b = moments_of(a), moments_of(b)
    return frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())


def random_covariance(f, rank, seed):
    factor = torch.randn(f, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T / rank


def test_moments_agree_with_numpy_whatever_the_blocks_and_the_offset():
    rows = np.random.default_rng(0).normal(1e6, 1.0, (101, 3))
    moments = moments_of(*torch.from_numpy(rows).split([1, 50, 0, 30, 20]))
    assert moments.n == 101
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=1e-14)
    # Sums of squares would keep about 4 of 16 digits at this offset.
    np.testing.assert_allclose(moments.covariance().numpy(), np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-9)


def test_closed_form_for_commuting_covariances():
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 0.0]).double()
    rotation = torch.linalg.qr(random_covariance(3, 3, 1)).Q
    shift = torch.tensor([3.0, 0.0, 4.0]).double()
    expected = 25 + float((a.sqrt() - b.sqrt()).square().sum())  # 25 + 1 + 0 + 9
    found = frechet_distance(shift, rotation * a @ rotation.T, torch.zeros(3), rotation * b @ rotation.T)
    assert found == pytest.approx(expected, rel=1e-12)
    assert expected == 35


def test_closed_form_in_two_dimensions_for_covariances_that_do_not_commute():
    # For 2 x 2: tr (A B)^(1/2) = sqrt(tr A B + 2 sqrt(det A B)).
    a, b = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double(), torch.tensor([[1.0, -0.5], [-0.5, 4.0]]).double()
    root = torch.sqrt((a @ b).trace() + 2 * torch.linalg.det(a @ b).sqrt())
    expected = float(a.trace() + b.trace() - 2 * root)
    zero = torch.zeros(2)
    assert frechet_distance(zero, a, zero, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(zero, b, zero, a) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [12, 500])  # 12 samples of 32 features: singular covariances
def test_identical_sets_are_at_distance_zero(n):
    rows = 100 * torch.randn(n, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert distance(rows, rows.flip(0)) == pytest.approx(0, abs=1e-6)


def test_rounding_makes_no_distance_negative():
    """Without a bound it does, for one or another of these: equal Gaussians, whose terms cancel."""
    for seed in range(50):
        rows = 100 * torch.randn(40, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert 0 <= distance(rows, rows) < 1e-8


def test_singular_covariances():
    a, b = random_covariance(40, 5, 0), random_covariance(40, 7, 1)
    lift = 1e-9 * torch.eye(40, dtype=torch.float64)
    zero = torch.zeros(40)
    found = frechet_distance(zero, a, zero, b)
    assert found == pytest.approx(frechet_distance(zero, a + lift, zero, b + lift), rel=1e-4)
    assert frechet_distance(zero, a, zero, torch.zeros(40, 40)) == pytest.approx(float(a.trace()), rel=1e-12)


def test_equals_torchmetrics():
    fid = torchmetrics_image().fid

    class Double(torch.nn.Module):
        num_features = 16

        def forward(self, x):
            return x.double()

    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=rng)
    a, b = torch.randn(300, 16, generator=rng) @ mixing, 1.3 * torch.randn(200, 16, generator=rng) + 0.5
    theirs = fid.FrechetInceptionDistance(feature=Double())
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert distance(a, b) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_equals_torch_fidelity():
    from_statistics = torch_fidelity().metric_fid.fid_statistics_to_metric
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(200, 200))
    a, b = rng.normal(size=(900, 200)) @ mixing, 1.1 * rng.normal(size=(700, 200)) @ mixing + 0.5
    theirs = from_statistics(*({"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (a, b)), verbose=False)
    ours = distance(torch.from_numpy(a), torch.from_numpy(b))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


@pytest.mark.parametrize(("n", "copies"), [(40, 1), (16, 8), (200, 1)])
def test_the_trace_is_exact_where_covariances_are_singular_and_sqrtm_is_not(n, copies):
    """The reference never forms a covariance: tr (A B)^(1/2) is the nuclear norm of X Y^T for A = X^T X, B = Y^T Y."""
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    scales = np.exp(-np.arange(64) / 4)  # a condition number of 1e14 even with enough samples
    x = np.repeat(rng.normal(size=(n // copies, 64)) * scales, copies, 0)
    y = 1.1 * rng.normal(size=(n + 5, 64)) * scales + 0.1
    centred = [(v - v.mean(0)) / np.sqrt(len(v) - 1) for v in (x, y)]
    trace = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    covariances = [v.T @ v for v in centred]
    rest = ((x.mean(0) - y.mean(0)) ** 2).sum() + sum(np.trace(c) for c in covariances)
    error = abs(distance(torch.from_numpy(x), torch.from_numpy(y)) / (rest - 2 * trace) - 1)
    assert error < 1e-12
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        root = linalg.sqrtm(covariances[0] @ covariances[1])
    theirs = abs((rest - 2 * np.trace(root).real) / (rest - 2 * trace) - 1)
    assert warned or not theirs < 100 * error or n > 64


def test_errors_say_what_was_expected():
    eye, zero = torch.eye(3), torch.zeros(3)
    with pytest.raises(ValueError, match=r"cov_b has shape \(2, 2\), expected \(3, 3\)"):
        frechet_distance(zero, eye, zero, torch.eye(2))
    with pytest.raises(ValueError, match="mean_a has non-finite"):
        frechet_distance(zero / 0, eye, zero, eye)
    with pytest.raises(ValueError, match=r"n = 1 samples, expected at least 2"):
        moments_of(torch.zeros(1, 3)).covariance()
    with pytest.raises(ValueError, match=r"shape \(1, 4\), expected \(B, 3\)"):
        Moments(3).add(torch.zeros(1, 4))

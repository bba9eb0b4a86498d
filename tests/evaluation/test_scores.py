"""Inception score and kernel distance: against torch-fidelity, torchmetrics and their definitions."""

import numpy as np
import pytest
import torch

from facm.evaluation import InceptionScore, KernelDistance
from tests.evaluation.evaluation_parts import torch_fidelity, torchmetrics_image


def logits(n, classes=50, seed=0):
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def features(n, seed, shift=0.0, f=32):
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed)) + shift


def streamed(x, sizes, **options):
    score = InceptionScore(len(x), **options)
    for part in x.split(sizes):
        score.add(part)
    return score.result()


@pytest.mark.parametrize("n", [500, 1003])
def test_inception_score_equals_torch_fidelitys_in_any_batches(n):
    theirs = torch_fidelity().metric_isc.isc_features_to_metric(logits(n))
    for size in (1, 64, n):
        mean, std = streamed(logits(n), size)
        assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-10)
        assert std == pytest.approx(theirs["inception_score_std"], rel=1e-8)
    assert std > 0.1  # the parts differ, so that which sample is in which matters


def test_inception_score_equals_torchmetrics_where_order_does_not_matter():
    class Same(torch.nn.Module):
        def forward(self, x):
            return x

    theirs = torchmetrics_image().inception.InceptionScore(feature=Same(), splits=1)
    theirs.update(logits(300))
    assert streamed(logits(300), 100, splits=1)[0] == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


def test_inception_score_of_sure_balanced_classes_is_their_number_and_of_one_class_is_one():
    sure = 1000 * torch.eye(5).repeat(20, 1)
    assert streamed(sure, 7, splits=1) == (pytest.approx(5), 0)
    assert streamed(sure[:1].expand(100, -1), 7) == (pytest.approx(1), pytest.approx(0))


def test_inception_score_needs_all_samples_and_no_more():
    score = InceptionScore(20)
    with pytest.raises(ValueError, match="0 of n = 20 samples so far"):
        score.result()
    score.add(logits(19))
    with pytest.raises(ValueError, match="19 of n = 20 samples so far"):
        score.result()
    with pytest.raises(ValueError, match="21 samples, expected no more than the n = 20 announced"):
        score.add(logits(2))
    score.add(logits(1))
    assert score.result()[0] > 1
    with pytest.raises(ValueError, match="splits = 10, expected 1 to n = 9"):
        InceptionScore(9)


def test_kernel_distance_equals_torch_fidelitys():
    real, generated = features(700, 0), features(600, 1, 0.3)
    theirs = torch_fidelity().metric_kid.kid_features_to_metric(
        generated, real, kid_subsets=7, kid_subset_size=300, verbose=False
    )
    mean, std = KernelDistance(subsets=7, subset_size=300)(generated, real)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    assert mean > 5 * std > 0


def test_kernel_distance_equals_torchmetrics_where_order_does_not_matter():
    class Same(torch.nn.Module):
        num_features = 32

        def forward(self, x):
            return x

    theirs = torchmetrics_image().kid.KernelInceptionDistance(feature=Same(), subsets=1, subset_size=200)
    theirs.update(features(200, 0), real=True)
    theirs.update(features(200, 1, 0.3), real=False)
    ours, std = KernelDistance(subsets=1, subset_size=200)(features(200, 1, 0.3), features(200, 0))
    assert ours == pytest.approx(float(theirs.compute()[0]), rel=1e-4)
    assert std == 0


def test_kernel_distance_is_the_definition():
    x, y = features(9, 0, f=3).double(), features(9, 1, 0.5, f=3).double()

    def k(a, b):
        return float((a @ b / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(9) for j in range(9)]
    within = sum(k(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / (9 * 8)
    between = sum(k(x[i], y[j]) for i, j in pairs) / 81
    assert KernelDistance(1, 9)(x, y)[0] == pytest.approx(within - 2 * between, rel=1e-12)


def test_kernel_distance_is_unbiased():
    values = [
        KernelDistance(1, 100, seed)(features(500, 2 * seed), features(500, 2 * seed + 1))[0] for seed in range(60)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 60**0.5
    assert min(values) < 0 < max(values)


def test_kernel_distance_says_what_was_expected():
    with pytest.raises(ValueError, match="99 generated samples, expected at least subset_size = 100"):
        KernelDistance(1, 100)(features(99, 0), features(200, 0))
    with pytest.raises(ValueError, match="99 real samples, expected at least subset_size = 100"):
        KernelDistance(1, 100)(features(200, 0), features(99, 0))
    with pytest.raises(ValueError, match=r"generated \(9, 2\) and real \(9, 3\): expected features"):
        KernelDistance(1, 9)(torch.zeros(9, 2), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="subsets = 0, expected at least 1"):
        KernelDistance(0)
    with pytest.raises(ValueError, match="subset_size = 1, expected at least 2"):
        KernelDistance(1, 1)

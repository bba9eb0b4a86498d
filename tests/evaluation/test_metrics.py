"""The streaming measurement: independence of batching, quantisation, counts, and its errors."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from facm.core.types import Batch
from facm.evaluation import (
    Identity,
    Measure,
    MeasureSettings,
    build_reference,
    frechet_distance,
    quantise,
    reference_floor,
)


class Samples:
    num_classes = None
    flip = False

    def __init__(self, x, labels=None):
        self.x, self.labels, self.shape = x, labels, tuple(x.shape[1:])

    def __len__(self):
        return len(self.x)

    def read(self, indices):
        chosen = torch.as_tensor(indices)
        return Batch(self.x[chosen], None if self.labels is None else self.labels[chosen])


class Brightness(nn.Module):
    """One feature, the mean; class 1 where it is positive."""

    num_features, num_classes, identity = 1, 2, "brightness"

    def forward(self, x):
        return x.flatten(1).mean(1, keepdim=True)

    def classify(self, x):
        return torch.cat([-self(x), self(x)], 1)


def points(n, seed, scale=1.0):
    return scale * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def toy():
    dataset = Samples(points(500, 0))
    extractor = Identity().build(dataset, "cpu")
    return extractor, build_reference(dataset, extractor, batch_size=64)


def test_reference_holds_the_statistics_of_all_samples(toy):
    _, reference = toy
    x = points(500, 0)
    np.testing.assert_allclose(reference.mean, x.double().mean(0), atol=1e-12)
    np.testing.assert_allclose(reference.covariance, np.cov(x.double().numpy(), rowvar=False), atol=1e-12)
    assert (reference.n, reference.shape, reference.features) == (500, (2,), "identity")
    assert reference.fingerprint == hashlib.sha256(x.numpy().tobytes()).hexdigest()
    torch.testing.assert_close(reference.rows, x)


def test_reference_keeps_evenly_spaced_rows():
    dataset = Samples(torch.arange(100.0)[:, None].expand(100, 2).contiguous())
    reference = build_reference(dataset, Identity().build(dataset), keep=4, batch_size=7)
    assert reference.rows[:, 0].tolist() == [0, 33, 66, 99]


def test_result_does_not_depend_on_the_batches_and_counts(toy):
    extractor, reference = toy
    x = points(300, 1, 1.5)
    whole, parts = Measure(extractor, reference), Measure(extractor, reference)
    whole.update(x)
    for part in x.split([1, 0, 200, 99]):
        parts.update(part)
    a, b = whole.result(), parts.result()
    assert replace(a, frechet_distance=0) == replace(b, frechet_distance=0)
    assert a.frechet_distance == pytest.approx(b.frechet_distance, rel=1e-10)
    x_mean, x_cov = x.double().mean(0), torch.cov(x.double().T)
    assert a.frechet_distance == pytest.approx(
        frechet_distance(x_mean, x_cov, reference.mean, reference.covariance), rel=1e-10
    )
    assert 0.3 < a.frechet_distance < 0.9  # 2 (1.5 - 1)^2 = 0.5 for Gaussians
    assert (a.n, a.n_reference, a.accuracy) == (300, 500, None)
    assert (a.features, a.reference) == ("identity", reference.fingerprint)
    assert a.precision is not None
    assert a.recall is not None
    assert a.precision < a.recall  # too wide: covers everything, hits less


def test_the_real_samples_themselves_are_perfect(toy):
    extractor, reference = toy
    measure = Measure(extractor, reference)
    measure.update(points(500, 0))
    result = measure.result()
    assert result.frechet_distance == pytest.approx(0, abs=1e-6)
    assert (result.precision, result.recall) == (1, 1)


def test_only_the_first_samples_are_kept_for_precision(toy):
    extractor, reference = toy
    measure = Measure(extractor, reference, settings=MeasureSettings(keep=100))
    for part in (points(60, 1), points(30, 2), points(1000, 3) + 50):
        measure.update(part)
    assert 0.8 < measure.result().precision <= 0.9  # 90 good ones and the first 10 of the far ones
    assert measure.result().frechet_distance > 1000


def test_precision_is_unavailable_for_a_handful_of_samples(toy):
    measure = Measure(*toy)
    measure.update(points(3, 1))
    assert (measure.result().precision, measure.result().recall) == (None, None)


def test_accuracy_counts_over_batches():
    images = torch.linspace(-1, 1, 64).reshape(64, 1, 1, 1).expand(64, 1, 2, 2)
    dataset = Samples(images)
    measure = Measure(Brightness(), build_reference(dataset, Brightness()))
    labels = (torch.arange(64) >= 32).long()
    labels[:16] = 1  # 16 of 64 generated samples contradict their label
    for x, y in zip(images.split(24), labels.split(24), strict=True):
        measure.update(x, y)
    assert measure.result().accuracy == 0.75
    with pytest.raises(ValueError, match=r"labels is None, expected \(64,\).*accuracy=False"):
        measure.update(images)
    with pytest.raises(ValueError, match=r"labels run over \[0, 2\], expected them within \[0, 2\)"):
        measure.update(images, labels.clone().fill_(2) * (torch.arange(64) > 0))
    with pytest.raises(ValueError, match=r"labels are torch.int64 of shape \(3,\)"):
        measure.update(images, labels[:3])
    assert measure.result().n == 64
    unconditional = Measure(Brightness(), build_reference(dataset, Brightness()), accuracy=False)
    unconditional.update(images)
    assert unconditional.result().accuracy is None


def test_quantise_rounds_to_the_nearest_of_256_levels():
    levels = torch.arange(256) / 127.5 - 1
    x = levels.reshape(1, 1, 16, 16)
    torch.testing.assert_close(quantise(x), x, rtol=0, atol=1e-7)
    torch.testing.assert_close(quantise(x + 0.4 / 127.5), x, rtol=0, atol=1e-7)  # truncation passes this
    torch.testing.assert_close(quantise(x - 0.4 / 127.5), x, rtol=0, atol=1e-7)  # and fails this
    assert quantise(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [-1, 1]
    assert quantise(quantise(x)).equal(quantise(x))
    with pytest.raises(ValueError, match=r"shape \(5, 2\), expected images \(B, C, H, W\)"):
        quantise(torch.zeros(5, 2))


def test_generated_images_are_quantised_and_toys_are_not(toy):
    images = torch.randint(0, 256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    dataset = Samples(images)
    extractor = Identity().build(dataset)
    measure = Measure(extractor, build_reference(dataset, extractor))
    measure.update(images + 0.3 / 127.5)
    assert measure.result().frechet_distance == pytest.approx(0, abs=1e-9)

    finer = build_reference(Samples((images + 0.3 / 127.5).clamp(-1, 1)), extractor)  # as real ones are, from bytes
    torch.testing.assert_close(finer.mean, build_reference(dataset, extractor).mean, rtol=0, atol=1e-7)

    extractor, reference = toy
    measure = Measure(extractor, reference)
    measure.update(points(500, 0) + torch.tensor([10.0, 0]))
    assert measure.result().frechet_distance == pytest.approx(100, rel=1e-5)


def test_floor_is_seeded_small_and_falls_with_n():
    dataset = Samples(points(2001, 0))
    extractor = Identity().build(dataset)
    floor = reference_floor(dataset, extractor, seed=3, batch_size=100)
    assert floor == reference_floor(dataset, extractor, seed=3, batch_size=100)
    assert floor != reference_floor(dataset, extractor, seed=4, batch_size=100)
    assert 0 < floor < 0.02
    small = Samples(points(40, 0))
    seeds = range(8)
    assert sum(reference_floor(small, extractor, seed=s) for s in seeds) > 5 * sum(
        reference_floor(dataset, extractor, seed=s) for s in seeds
    )
    with pytest.raises(ValueError, match="n = 3 samples, expected at least 4"):
        reference_floor(Samples(points(3, 0)), extractor)


def test_errors_say_what_was_expected(toy):
    extractor, reference = toy
    measure = Measure(extractor, reference)
    broken = points(10, 0)
    broken[2, 1], broken[5] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="2 of 10 generated samples are not finite"):
        measure.update(broken)
    with pytest.raises(ValueError, match=r"generated samples have shape \(4, 3\), expected \(B, 2\)"):
        measure.update(torch.zeros(4, 3))
    measure.update(points(1, 0))
    with pytest.raises(ValueError, match="n = 1 generated samples, expected at least 2"):
        measure.result()
    with pytest.raises(ValueError, match="n = 1 samples, expected at least 2"):
        build_reference(Samples(points(1, 0)), extractor)
    with pytest.raises(ValueError, match="keep = 0, expected at least 1"):
        MeasureSettings(keep=0)
    with pytest.raises(ValueError, match="extractor is 'brightness', expected the reference's 'identity'"):
        Measure(Brightness(), reference)
    with pytest.raises(ValueError, match=r"accuracy=True.*'identity' does not classify"):
        Measure(extractor, reference, accuracy=True)
    with pytest.raises(ValueError, match=r"real images run over \[0, 255\], expected \[-1, 1\]"):
        build_reference(Samples(torch.arange(256.0).reshape(4, 1, 8, 8)), Brightness())
    with pytest.raises(ValueError, match=r"'identity' returned \(4, 3\), expected \(4, 2\)"):
        build_reference(Samples(torch.zeros(4, 3)), extractor)


class WithLogits(Brightness):
    def features_and_logits(self, x):
        return self(x), self.classify(x)


@pytest.mark.parametrize(("n", "splits"), [(9, None), (10, 10), (11, 10)])
def test_the_inception_score_needs_a_sample_for_each_of_its_ten_parts(n, splits):
    images = torch.linspace(-1, 1, n).reshape(n, 1, 1, 1).expand(n, 1, 2, 2)
    measure = Measure(WithLogits(), build_reference(Samples(images), WithLogits()), n=n, accuracy=False)
    measure.update(images)
    result = measure.result()
    assert (result.splits, result.inception_score is None) == (splits, splits is None)

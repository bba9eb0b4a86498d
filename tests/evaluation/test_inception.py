"""FID's network: torch-fidelity's features, safely read, with or without torchvision; and what is FID-50k."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from facm.core.types import Batch
from facm.evaluation import Inception, KernelDistance, Measure, MeasureSettings, build_reference, inception
from facm.evaluation.metrics import check_enough
from tests.evaluation.evaluation_parts import random_inception, torch_fidelity


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_inception(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="module")
def network(weights):
    return Inception(str(weights), block=5).build()


class Images(torch.utils.data.Dataset):
    """Blobs of colour, float32 on 256 levels."""

    num_classes, flip, shape = None, False, (3, 32, 32)

    def __init__(self, n, seed, shape=(3, 32, 32), contrast=1.0):
        rng = torch.Generator().manual_seed(seed)
        coarse = torch.randn(n, shape[0], 4, 4, generator=rng) + torch.randn(n, shape[0], 1, 1, generator=rng)
        x = torch.nn.functional.interpolate(coarse * contrast, shape[1:], mode="bilinear").sigmoid()
        self.bytes, self.shape = (x * 255).round().to(torch.uint8), shape
        self.x = self.bytes / 127.5 - 1

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):  # for torch-fidelity
        return self.bytes[i]

    def read(self, indices):
        return Batch(self.x[torch.as_tensor(indices)])


@pytest.mark.slow
def test_features_and_scores_are_torch_fidelitys_on_the_same_images(weights, network, monkeypatch):
    """Features bit for bit, the scores made of them, and the moments that go into FID; that the distance of equal
    moments is torch-fidelity's is in test_evaluation_frechet.py, in fewer dimensions (2048 take it half a minute)."""
    metrics = torch_fidelity().metrics
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(weights))
    real, generated = Images(10, 2), Images(11, 3, contrast=0.7)
    with torch.no_grad():
        expected, of_real = (
            [torch.cat(f) for f in zip(*map(theirs, i.bytes.split(5)), strict=True)] for i in (generated, real)
        )
    seen = []
    monkeypatch.setattr("facm.evaluation.metrics.frechet_distance", lambda *moments: seen.extend(moments) or 1.0)
    settings = MeasureSettings(kernel=KernelDistance(6, 9), small_n=True)
    measure = Measure(network, build_reference(real, network, batch_size=5), n=11, settings=settings)
    for part in generated.x.split(5):
        found = measure.extract(part)
        assert found[0].equal(expected[0][: len(part)])
        assert found[2].equal(expected[1][: len(part)])
        expected = [f.roll(-len(part), 0) for f in expected]
        measure.add(*found)
    ours = measure.result()
    assert (expected[0][0] - expected[0][1]).abs().max() > 0.01  # features tell images apart
    for mean, covariance, features in ((*seen[:2], expected[0]), (*seen[2:], of_real[0])):
        np.testing.assert_allclose(mean, features.double().numpy().mean(0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-8, atol=1e-10)
    score = metrics.isc_featuresdict_to_metric({"l": expected[1]}, "l", verbose=False)
    assert ours.inception_score - 1 == pytest.approx(score["inception_score_mean"] - 1, rel=1e-3)
    assert ours.inception_score_std == pytest.approx(score["inception_score_std"], rel=1e-3)
    assert ours.inception_score > 1.0001
    kid = metrics.kid_featuresdict_to_metric(
        {"f": expected[0]}, {"f": of_real[0]}, "f", kid_subsets=6, kid_subset_size=9, verbose=False
    )
    assert ours.kid == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-3)
    assert ours.kid_std == pytest.approx(kid["kernel_inception_distance_std"], rel=1e-2)
    assert (ours.splits, ours.kid_subsets, ours.kid_subset_size, ours.kept, ours.kept_reference) == (10, 6, 9, 11, 10)
    assert ours.metric_names["frechet_distance"] == "FID (n = 11, not comparable to published)"


@pytest.mark.slow
def test_features_do_not_depend_on_mode_or_company_and_take_no_gradient(network):
    x = Images(6, 1).x  # blocks of 5 and 1
    alone = network.train()(x[5:])
    torch.testing.assert_close(network(x)[5:], alone, rtol=1e-4, atol=1e-5)
    assert not network.network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.slow
def test_identity_follows_the_weights_and_not_the_file(weights, network, tmp_path):
    assert network.identity.startswith("inception-v3-torch-fidelity-")
    again = torch.load(weights, weights_only=True)
    torch.save(dict(again), tmp_path / "copy.pth", _use_new_zipfile_serialization=False)
    assert Inception(str(tmp_path / "copy.pth")).build().identity == network.identity
    again["fc.bias"] += 1
    torch.save(again, tmp_path / "other.pth")
    assert Inception(str(tmp_path / "other.pth")).build().identity != network.identity


IMPORTS = """
import sys
from facm.evaluation import Inception
sys.modules["torchvision"] = None  # what it looks like where it does not import
network = Inception(sys.argv[1]).build()
assert not [name for name in sys.modules if "torch_fidelity" in name]
print(network.identity, network.published)
"""


@pytest.mark.slow
def test_torchvision_is_not_needed_and_nothing_is_left_behind(weights, network):
    done = subprocess.run([sys.executable, "-c", IMPORTS, str(weights)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [network.identity, "False"], done.stderr


def test_a_loaded_torch_fidelity_is_used_and_stays():
    package = torch_fidelity()
    assert inception._port() is sys.modules["torch_fidelity.feature_extractor_inceptionv3"]
    assert sys.modules["torch_fidelity"] is package


def test_errors_say_what_is_missing(weights, network, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"none.pth: there is no such file; expected the Inception weights of torch-f"):
        Inception(str(tmp_path / "none.pth")).build()
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"other.pth does not fit \(Missing key.*Conv2d_1a_3x3.*expected the Inception"
    ):
        Inception(str(tmp_path / "other.pth")).build()
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"checkpoint.pth holds more than named tensors"):
        Inception(str(tmp_path / "checkpoint.pth")).build()
    torch.save(torch.nn.Linear(1, 1), tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code.pth holds torch.nn.*could run code, so it is refused"):
        Inception(str(tmp_path / "code.pth")).build()
    with pytest.raises(ValueError, match=r"samples of shape \(1, 28, 28\), expected RGB images \(3, H, W\)"):
        Inception(str(weights)).build(Images(2, 0, (1, 28, 28)))
    with pytest.raises(ValueError, match=r"x has shape \(2, 1, 8, 8\), expected RGB images"):
        network(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="block = 0, expected at least 1"):
        Inception(block=0)
    with pytest.raises(TypeError, match="no data set's order"):
        network.classify(torch.zeros(1, 3, 8, 8))
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"torch-fidelity, which is not installed: pip install 'facm\[eval\]'"):
        Inception(str(weights)).build()


def test_without_a_path_the_published_file_is_fetched_once_and_its_hash_is_checked(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def fetch(url, path, hash_prefix, progress):
        asked.append((url.rpartition("/")[2], hash_prefix))
        with open(path, "wb") as file:
            file.write(weights.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr("torch.hub.download_url_to_file", fetch)
        assert not Inception().build().published
        patch.setattr(inception, "_SHA256", hashlib.sha256(weights.read_bytes()).hexdigest()[:8])
        assert Inception().build().published  # what is there is not fetched again
    assert asked == [("weights-inception-2015-12-05-6726825d.pth", "6726825d")]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "other"))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ValueError, match=r"could not download https.*\(no network\): put the file there, or give its"):
        Inception().build()


class Tiny(torch.nn.Module):
    """Two features under FID's name."""

    num_features, num_classes, identity, published = 2, None, "tiny", True
    metric_names = inception.InceptionNetwork.metric_names

    def forward(self, x):
        return x.mean((2, 3))[:, :2]


def test_only_fid_50k_by_published_means_is_called_comparable(monkeypatch):
    monkeypatch.setattr("facm.evaluation.metrics.PUBLISHED_N", 40)
    images = Images(40, 5)
    built = build_reference(images, Tiny())
    published = replace(built, file="stats.npz", assumed=True)

    def measured(extractor=None, reference=published, n=40, how="round"):
        measure = Measure(extractor or Tiny(), reference, settings=MeasureSettings(quantise=how))
        measure.update(images.x[:n])
        return measure.result()

    good = measured()
    assert good.comparable_to_published
    assert good.not_comparable == ()
    assert good.metric_names == {"frechet_distance": "FID-50k", "kid": "KID", "inception_score": "IS"}
    assert good.features_of_reference == "assumed"

    retrained, other = Tiny(), Tiny()
    retrained.published = False
    other.metric_names = {}
    for bad, reason in [
        (measured(n=39), "n = 39, papers take 40"),
        (measured(how="truncate"), "generated images were truncated to 8 bits, not rounded"),
        (measured(reference=built), "the reference statistics are not a published file"),
        (measured(reference=replace(built, file="own.npz")), "the reference statistics are not a published file"),
        (measured(retrained), "the Inception weights are not the published file"),
        (measured(other), "the features 'tiny' are not those of FID"),
    ]:
        assert not bad.comparable_to_published
        assert len(bad.not_comparable) == 1
        assert bad.not_comparable[0].startswith(reason)
        assert "50k" not in str(bad.metric_names)
    assert measured(n=39).metric_names["frechet_distance"] == "FID (n = 39, not comparable to published)"
    assert measured(other).metric_names == {}


def test_too_few_samples_for_a_name_are_refused_unless_insisted():
    images = Images(9, 6)
    reference = build_reference(images, Tiny())
    with pytest.raises(ValueError, match=r"n = 2 samples for 2 features.*means nothing.*small_n=True"):
        Measure(Tiny(), reference, n=2)
    measure = Measure(Tiny(), reference)
    measure.update(images.x[:2])
    with pytest.raises(ValueError, match=r"n = 2 samples for 2 features"):
        measure.result()
    measure.update(images.x[2:3])
    assert measure.result().n == 3
    insisting = Measure(Tiny(), reference, n=2, settings=MeasureSettings(small_n=True))
    insisting.update(images.x[:2])
    assert insisting.result().n == 2
    nameless = Tiny()
    nameless.metric_names = {}
    check_enough(2, nameless, reference)
    with pytest.raises(ValueError, match="n = 2 samples for 2 features"):
        check_enough(2, nameless, replace(reference, file="stats.npz"))

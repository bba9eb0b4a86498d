"""The example of one's own features: it reads the public layout, and judges CIFAR-10 as published."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from facm.data.cifar10 import Cifar10
from facm.evaluation import Measure, load_reference
from facm.evaluation.evaluator import build_evaluator
from tests.evaluation.test_metrics import Samples
from tests.paths import ROOT, needs, outside

FILE = ROOT / "examples" / "cifar10_features.py"
SHARED = outside("data")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("cifar10_features", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cifar10_features"] = module  # its dataclass is looked up there
    spec.loader.exec_module(module)
    return module


def random_weights(example, path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"module.{name}": value for name, value in example.ResNet56Network().state_dict().items()}
    torch.save({"best_prec1": 10.0, "state_dict": state}, path)
    return path


@pytest.mark.slow
def test_it_plugs_in_and_is_not_called_fid(example, tmp_path):
    x = torch.rand(80, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    dataset = Samples(x)
    features = example.ResNet56(str(random_weights(example, tmp_path / "r.pth")))
    evaluator = build_evaluator(dataset, torch.device("cpu"), features)
    network = evaluator.extractor
    assert network(x[:3]).shape == (3, 64)
    torch.testing.assert_close(network.train()(x[:1]), network(x[:3])[:1], rtol=1e-4, atol=1e-5)
    measure = Measure(network, evaluator.reference)
    measure.update(x, torch.zeros(80, dtype=torch.int64))
    result = measure.result()
    assert result.features.startswith("cifar10-resnet56-")
    assert (result.metric_names, result.comparable_to_published) == ({}, False)
    assert result.frechet_distance < 1e-8 * float(evaluator.reference.covariance.trace())  # random features are large


def test_it_says_what_is_wrong_with_a_file(example, tmp_path):
    with pytest.raises(ValueError, match=r"none.pth: there is no such file; expected the weights of a CIFAR-10 ResNet"):
        example.ResNet56(str(tmp_path / "none.pth")).build()
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"(?s)other.pth does not hold a CIFAR-10 ResNet-56: .*Missing key"):
        example.ResNet56(str(tmp_path / "other.pth")).build()
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), expected CIFAR-10's \(3, 32, 32\)"):
        example.ResNet56("x").build(Samples(torch.zeros(2, 1, 8, 8)))


def test_its_numbers_on_cifar10_are_the_published_ones(example):
    """500 test images: 94 % are recognised; noise of sd 0.1 (0.05 of the range) puts them 12 away."""
    features = needs(SHARED / "features")
    network = example.ResNet56(str(next(features.glob("cifar10_resnet56-*.pth")))).build()
    reference = load_reference(features / "cifar10_train_resnet56_stats.npz", network)
    assert (reference.n, reference.assumed) == (50_000, True)
    data = Cifar10(str(SHARED / "cifar10" / "cifar10_webp.zip"), split="test").open()
    batch = data.read(np.linspace(0, len(data) - 1, 500).astype(int))
    noise = torch.randn(batch.x_1.shape, generator=torch.Generator().manual_seed(0))
    results = []
    for sd in (0.0, 0.1):
        measure = Measure(network, reference)
        measure.update(batch.x_1 + sd * noise, batch.cond)
        results.append(measure.result())
    assert results[0].accuracy > 0.91
    assert results[0].frechet_distance < 0.6  # few images; 0.05 with all 10,000
    assert 10 < results[1].frechet_distance < 15
    assert results[0].n_reference == 50_000

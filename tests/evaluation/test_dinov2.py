"""DINOv2's features, with a tiny random model saved here."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from facm.evaluation import DINOv2, Measure, build_reference
from facm.evaluation.dinov2 import DINOv2Network, resized
from tests.evaluation.test_metrics import Samples

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dinov2")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14, drop_path_rate=0.5
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Dinov2Model(config)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.1 * torch.randn(value.shape))
    model.save_pretrained(path)
    return path


def images(n, side=32, seed=0):
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed)) / 127.5 - 1


def test_features_are_the_class_token_after_the_last_norm(folder):
    network = DINOv2(str(folder), block=2).build()
    x = images(3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((resized(x).permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2)
    model = transformers.Dinov2Model.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(pixels).pooler_output, rtol=1e-4, atol=1e-5)
        assert network(x).shape == (3, network.num_features) == (3, 32)
        assert (network(x)[0] - network(x)[1]).abs().max() > 1e-3
        assert network.train()(x).equal(network(x))
    assert not any(p.requires_grad for p in network.parameters())
    assert network.identity == DINOv2(str(folder)).build().identity
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert network.identity == f"dinov2-32x2-14-{digest[:16]}"


@pytest.mark.parametrize("side", [32, 256, 500])
def test_resizing_is_pillows_within_one_level(side):
    x = images(1, side)
    levels = ((x[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    pillow = np.asarray(Image.fromarray(levels).resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    ours = (resized(x)[0] * 255).round().permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - pillow).max() <= 1


def test_only_the_large_model_has_the_published_name(folder):
    assert DINOv2(str(folder)).build().metric_names == {}

    class Large(torch.nn.Linear):
        config = transformers.Dinov2Config(hidden_size=1024, num_hidden_layers=24, patch_size=14)

    assert DINOv2Network(Large(1, 1), "hash").metric_names == {"frechet_distance": "FD-DINOv2"}


def test_it_measures(folder):
    network = DINOv2(str(folder)).build()
    reference = build_reference(Samples(images(6)), network)
    measure = Measure(network, reference)
    measure.update(images(6))
    result = measure.result()
    assert result.frechet_distance == pytest.approx(0, abs=1e-4)
    assert (result.precision, result.recall, result.kid, result.inception_score) == (1, 1, None, None)
    assert not result.comparable_to_published


def test_errors_say_what_is_missing(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"none/config.json: there is no such file; expected a local copy of a DINOv2"):
        DINOv2(str(tmp_path / "none")).build()
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), expected RGB images \(3, H, W\)"):
        DINOv2(str(folder)).build(Samples(torch.zeros(2, 1, 8, 8)))
    with pytest.raises(ValueError, match=r"x has shape \(2, 1, 8, 8\), expected RGB images"):
        DINOv2(str(folder)).build()(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="block = 0, expected at least 1"):
        DINOv2("x", block=0)
    with pytest.raises(TypeError, match="does not classify"):
        DINOv2(str(folder)).build().classify(torch.zeros(1, 3, 8, 8))
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()

    def refused(match, config=config, weights=weights):
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes(weights)
        with pytest.raises(ValueError, match=match):
            DINOv2(str(tmp_path)).build()

    refused("holds a model of type 'vit', expected 'dinov2'", config={**config, "model_type": "vit"})
    refused("lacks weights of a DINOv2 model: encoder.layer.2", config={**config, "num_hidden_layers": 3})
    refused("cannot be read", weights=weights[:100])
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(r"needs transformers, which does not import .*: pip install 'facm\[eval\]'")

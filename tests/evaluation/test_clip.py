"""The CLIP score, with a tiny random model saved here."""

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from facm.cli.show import evaluation_table
from facm.core.objective import NetworkInterface
from facm.evaluation import CLIP, CLIPEvaluator, Identity, Sampling, build_evaluator
from facm.evaluation.evaluate import evaluate
from facm.evaluation.features import NonFiniteSamplesError
from facm.flow.conditions import Unconditional
from facm.pretrained.trained import Trained
from facm.sampling.generate import noise
from facm.sampling.methods import Euler
from tests.evaluation.clip_parts import save_clip, transformers
from tests.evaluation.test_evaluate import Images, Network

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is missing")
PROMPTS = ["a red dog", "x", "a sentence that is longer than sixteen tokens"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def network(folder):
    return CLIP(str(folder)).build()


def images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(seed)) / 127.5 - 1


def by_hand(folder, x, prompts):
    """100 times the cosine, for images of the network's size."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    found = []
    with torch.no_grad():
        for image, prompt in zip(x, prompts, strict=True):
            seen = model.visual_projection(model.vision_model((((image + 1) / 2 - mean) / std)[None])[1])
            tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
            if tokens.shape[1] > 16:
                tokens = torch.cat([tokens[:, :15], tokens[:, -1:]], 1)  # the end token is kept
            read = model.text_projection(model.text_model(tokens)[1])
            found.append(100 * float(torch.cosine_similarity(seen, read)))
    return found


def test_a_score_is_the_cosine_times_100(folder, network):
    x = images(3)
    scores = network.scores(x, PROMPTS)
    assert scores.tolist() == pytest.approx(by_hand(folder, x, PROMPTS), abs=1e-3)
    assert scores.dtype == torch.float64
    assert scores.std() > 0.1
    assert network.scores(x[1:], PROMPTS[1:]).equal(scores[1:])
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert network.identity == f"clip-16x1-8-{digest[:16]}"


def test_what_cannot_be_scored_is_named(network):
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        network.scores(images(3), PROMPTS[:2])
    with pytest.raises(ValueError, match="expected images of 1 or 3 channels"):
        network.scores(torch.zeros(1, 4, 8, 8), ["x"])
    with pytest.raises(NonFiniteSamplesError):
        network.scores(images(1) / 0, ["x"])


def test_a_folder_that_is_no_clip_is_named(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"config\.json: there is no such file; expected a local copy of a CLIP"):
        CLIP(str(tmp_path)).build()
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "dinov2"}))
    with pytest.raises(ValueError, match="holds a model of type 'dinov2', expected 'clip'"):
        CLIP(str(other)).build()
    monkeypatch.setitem(sys.modules, "torchmetrics.multimodal.clip_score", None)
    with pytest.raises(ValueError, match=r"needs torchmetrics.*facm\[eval\]"):
        CLIP(str(folder)).build()


def test_the_table_shows_it_and_what_it_is_relative_to(capsys):
    row = {"nfe": 1, "sampler": "euler", "ema": None, "guidance": {"scale": 1.0}, "n": 6, "features": None}
    row |= dict.fromkeys(("frechet_distance", "precision", "recall", "accuracy"))
    evaluation_table([{**row, "clip_score": 31.25, "clip": "clip-tiny"}])
    said = capsys.readouterr().out
    assert "CLIP" in said
    assert "31.250" in said
    assert "CLIP score: clip-tiny" in said
    assert "real samples" not in said


class Prompted(Images):
    """Pictures with prompts, which its own decoder makes of its samples, twice as large."""

    shape = (1, 8, 8)

    def __init__(self):
        self.num_classes = None
        self.x = torch.zeros(3, 1, 8, 8)

    def prompts(self, indices):
        return [PROMPTS[i] for i in indices.tolist()]

    def decoder(self, device):
        return Twice()


class Twice:
    identity, factor = "twice", 2

    def __call__(self, x):
        return x.clamp(-1, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)


def run_of(dataset, path):
    data = SimpleNamespace(open=lambda: dataset)
    return Trained(Network(), None, NetworkInterface(Unconditional()), data, path, "EMA 0.1", 0.1, 64, "abc")


def test_the_average_is_over_samples_with_their_prompts_alone_or_beside_a_distance(network, tmp_path):
    dataset = Prompted()
    trained = run_of(dataset, tmp_path)
    decoder = trained.decoder(torch.device("cpu"))
    rows = [
        evaluate(trained, Sampling(Euler(1), 7, batch_size=k, decoder=decoder), CLIPEvaluator(network)) for k in (7, 2)
    ]
    x = decoder(noise(0, range(7), 0, dataset.shape) / 4)
    expected = float(network.scores(x, [PROMPTS[i % 3] for i in range(7)]).mean())
    assert [row.measurement.clip_score for row in rows] == pytest.approx([expected] * 2, abs=1e-9)
    assert rows[0].measurement.clip_score == rows[1].measurement.clip_score
    said = rows[0].to_json()
    assert (said["frechet_distance"], said["clip"], said["n"]) == (None, network.identity, 7)
    assert (said["quantised"], said["reference_file"]) == ("rounded to 8 bits", None)

    class Real(Images):
        shape = (1, 16, 16)

        def __init__(self):
            self.num_classes = None
            self.x = torch.randint(0, 256, (20, 1, 16, 16), generator=torch.Generator().manual_seed(1)) / 127.5 - 1

    both = dataclasses.replace(build_evaluator(Real(), torch.device("cpu"), Identity()), clip=network)
    measured = evaluate(trained, Sampling(Euler(1), 7, decoder=decoder), both).measurement
    assert measured.clip_score == rows[0].measurement.clip_score
    assert measured.frechet_distance > 0


def test_data_without_prompts_have_no_score(network, tmp_path):
    with pytest.raises(ValueError, match="whose data have no prompts"):
        evaluate(run_of(Images(), tmp_path), Sampling(Euler(1), 4), CLIPEvaluator(network))

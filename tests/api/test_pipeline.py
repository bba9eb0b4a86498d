"""A text-to-image model from Python, a tiny random Wan: distilled from its folder or as an opened pipeline, sampled by
prompts, given away, tried on the page, and checked."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import facm
from facm.foundation.prepare.pipeline import prepare
from facm.foundation.prepare.sources import source_at
from facm.playground import draw as drawing
from facm.playground.draw import Desk
from facm.playground.page import picture_settings
from facm.playground.request import Request
from facm.runs.folder import RunFolder
from tests.foundation.prepared_parts import FAST, prompts_file
from tests.foundation.wan_parts import tiny_wan
from tests.playground.test_draw import pixels
from tests.training.run_parts import weights

pytestmark = pytest.mark.slow
HOW = {"images": 8, "batch_size": 4, "lr": 1e-2, "lora_rank": 2, "quiet": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline")
    tiny_wan(place / "wan")
    prepare(source_at(prompts_file(place)), place / "wan", place / "data", FAST)
    facm.distill(place / "wan", place / "data", place / "run", **HOW)
    return place


@pytest.fixture(scope="module")
def student(place):
    return facm.load(place / "run")


def test_samples_follow_their_prompts(student):
    assert student.takes_prompts
    x = student.sample(prompts=["a red fox", "snow"], num_steps=2, seed=3)
    assert x.shape == (2, 3, 32, 32)
    assert x.isfinite().all()
    torch.testing.assert_close(student.sample(prompts="a red fox", num_steps=2, seed=3), x[:1])
    assert not torch.equal(student.sample(prompts=["a red fox", "seven"], num_steps=2, seed=3)[1], x[1])
    assert student.sample(3, prompts="snow").shape[0] == 3
    assert student.sample(1, prompts="snow", height=64, width=32).shape == (1, 3, 64, 32)
    with pytest.raises(ValueError, match=r"labels = 3, and .* takes prompts: expected prompts"):
        student.sample(labels=3)
    with pytest.raises(ValueError, match="labels and prompts are given, expected at most one"):
        student.sample(labels=3, prompts="snow")


def test_an_opened_pipeline_is_distilled_as_its_folder_is(place, tmp_path):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(place / "wan")
    again = facm.distill(pipe, place / "data", tmp_path / "run", **HOW)
    found, expected = (weights(RunFolder(path)) for path in (again.path, place / "run"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(ValueError, match=r"data = tensor.* with a text-to-image model, expected the folder"):
        facm.distill(pipe, torch.zeros(4, 3, 8, 8), tmp_path / "no", **HOW)
    pipe.register_to_config(_name_or_path="elsewhere")
    with pytest.raises(ValueError, match=r"was not opened from a folder.*save_pretrained"):
        facm.distill(pipe, place / "data", tmp_path / "no", **HOW)
    assert not (tmp_path / "no").exists()


def test_an_export_for_diffusers_draws_what_the_student_does(student, tmp_path):
    from diffusers import DiffusionPipeline

    out = student.export(tmp_path / "out", to="diffusers", num_steps=2, scheduler="facm")
    pipe = DiffusionPipeline.from_pretrained(out)
    exported, own = pipe.transformer.state_dict(), student.network.transformer
    changed = [name for name, _ in own.named_parameters() if ".lora_B." in name]
    assert changed
    base = DiffusionPipeline.from_pretrained(student.trained.config.path).transformer.state_dict()
    assert exported.keys() == base.keys()
    assert any(not torch.equal(exported[name], value) for name, value in base.items())
    assert json.loads((out / "model_index.json").read_text())["_class_name"] == type(pipe).__name__
    with pytest.raises(ValueError, match="exists and is not overwritten"):
        student.export(out, to="diffusers")
    with pytest.raises(ValueError, match=r"lora_rank = 3 with a run that trained .*; expected lora_rank = None"):
        student.export(tmp_path / "lora", to="lora", lora_rank=3)
    assert student.export(tmp_path / "lora", to="lora").is_dir()


def test_a_student_of_all_weights_needs_a_rank(place, tmp_path):
    whole = facm.distill(place / "wan", place / "data", tmp_path / "run", **HOW | {"lora_rank": 0})
    with pytest.raises(ValueError, match=r"lora_rank = None, and all weights .* expected the rank of adapters"):
        whole.export(tmp_path / "lora", to="lora")


def test_the_page_draws_prompts_and_opens_the_text_encoder_once_for_each(student, monkeypatch):
    desk, opened = Desk(student), []
    asked = student.asked
    monkeypatch.setattr(drawing.Model, "asked", lambda self, n, **how: opened.append(how["prompts"]) or asked(n, **how))
    request = Request(images=2, prompt="snow", seed=1, other_seed=2, teacher_steps=2)
    drawn = desk.draw(request)
    x = student.sample(2, prompts="snow", seed=1)
    shown = drawing.grid_png(x, 8, scale=drawn.settings["scale"])
    assert np.abs(pixels(drawn.png).astype(int) - pixels(shown)).max() <= 1
    assert json.loads(picture_settings(desk.draw_teacher(request).png))["prompt"] == "snow"
    assert opened == [["snow"]]
    between = desk.between(request, count=3)
    assert opened == [["snow"], ["snow"]]  # of one sample
    width = pixels(between.png).shape[1]
    ends = [desk.draw(Request(images=1, prompt="snow", seed=seed)) for seed in (1, 2)]
    first, last = (pixels(end.png) for end in ends)
    assert np.abs(pixels(between.png)[:, : first.shape[1]].astype(int) - first).max() <= 1
    assert np.abs(pixels(between.png)[:, width - last.shape[1] :].astype(int) - last).max() <= 1
    assert desk.sheet(request).settings["rows"] == [1, 2, 4, 8]


def test_a_pipeline_is_checked(place):
    found = facm.check(place / "wan", place / "data", quiet=True)
    assert found.name.endswith("wan (pipeline)")
    assert found.of("forward mode").verdict == "good"
    assert "Captions" in found.of("condition").found
    with pytest.raises(ValueError, match="data = None with the pipeline"):
        facm.check(place / "wan")

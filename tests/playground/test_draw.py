"""A student beside its teacher, as the page draws them."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import facm
from facm.data import Noise
from facm.networks import LightningDiT
from facm.playground.draw import SHEET_STEPS, Desk, _turned
from facm.playground.page import picture_settings
from facm.playground.request import Request
from facm.sampling.generate import noise
from facm.sampling.images import grid_png
from facm.sampling.methods import Euler
from tests.training.run_parts import facm_run, flow_run, trained

NETWORK = LightningDiT(input_size=8, patch_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=2)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    place = tmp_path_factory.mktemp("play")
    images = {"network": NETWORK, "data": Noise((1, 8, 8), num_classes=2)}
    trained(place / "teacher", flow_run(**images))
    trained(place / "student", facm_run(place / "teacher", **images))
    return Desk(facm.load(place / "student"))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_samples_are_those_of_the_command(desk):
    drawn = desk.draw(Request(images=3, seed=5, steps=2))
    x = desk.model.sample(3, 2, seed=5)
    assert np.array_equal(pixels(drawn.png), pixels(grid_png(x, 8, scale=drawn.settings["scale"])))
    assert drawn.evaluations == 2
    assert drawn.milliseconds > 0
    said = json.loads(picture_settings(drawn.png))
    assert (said["seed"], said["steps"], said["who"], said["images"]) == (5, 2, "student", 3)
    assert said["network"] == str(desk.model.path)


def test_the_teacher_starts_from_the_same_noise(desk):
    drawn = desk.draw_teacher(Request(images=2, teacher_steps=4))
    teacher = facm.load(desk.model.path.parent / "teacher")
    x = teacher.sample(2, sampler=Euler(4))
    assert np.array_equal(pixels(drawn.png), pixels(grid_png(x, 8, scale=drawn.settings["scale"])))
    flow = Desk(teacher)
    assert not flow.has_teacher
    with pytest.raises(ValueError, match="has no teacher, expected the run of a student"):
        flow.draw_teacher(Request(teacher_steps=4))


def test_a_sheet_has_a_row_for_each_number_of_steps(desk):
    drawn = desk.sheet(Request(images=2))
    rows = [desk.model.sample(2, steps) for steps in SHEET_STEPS]
    assert np.array_equal(pixels(drawn.png), pixels(grid_png(torch.cat(rows), 2, scale=drawn.settings["scale"])))


def test_noise_turns_into_another_and_stays_normal():
    ask = Request(images=1, seed=3, other_seed=4)
    ends = [noise(seed, range(1), 0, (1, 64, 64)) for seed in (3, 4)]
    assert torch.equal(_turned(ask, range(1), (1, 64, 64)), ends[0])
    assert torch.allclose(_turned(replace(ask, mix=1.0), range(1), (1, 64, 64)), ends[1], atol=1e-5)
    assert float(_turned(replace(ask, mix=0.5), range(1), (1, 64, 64)).std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(_turned(replace(ask, other_seed=3, mix=0.5), range(1), (1, 64, 64)), ends[0])


def test_a_row_between_two_seeds_has_them_at_its_ends(desk):
    drawn = desk.between(Request(seed=1, other_seed=2), count=3)
    assert drawn.settings["mix"] == [0, 0.5, 1]
    width = pixels(drawn.png).shape[1]
    first = pixels(desk.draw(Request(images=1, seed=1)).png)
    assert np.array_equal(pixels(drawn.png)[:, : first.shape[1]], first)
    assert width > 3 * first.shape[1] - 1


def test_a_class_and_what_was_never_learned(desk):
    source, cond = desk._asked(Request(images=2, label=1))
    assert cond.tolist() == [1, 1]
    assert source.shape == (1, 8, 8)
    assert desk.draw(Request(images=2, label=1)).settings["label"] == 1
    with pytest.raises(ValueError, match="labels = 99, expected 0 to"):
        desk.draw(Request(label=99))
    with pytest.raises(ValueError, match="takes none; expected a text-to-image model"):
        desk.draw(Request(prompt="<script>alert(1)</script>"))


def test_vectors_are_no_pictures(tmp_path):
    trained(tmp_path / "run", flow_run())
    with pytest.raises(ValueError, match=r"makes samples of shape \(2,\), expected pictures or clips"):
        Desk(facm.load(tmp_path / "run"))

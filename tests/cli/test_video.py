"""Networks that make clips, by the commands: one of a user's own on pixels, and a text-to-video model of diffusers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from facm.core import ffmpeg
from facm.sampling import clips as playing
from tests.cli.cli_parts import arrays, command, refused

MOVING = '''
from dataclasses import dataclass

import numpy as np
import torch

from facm import FlowMatching, Intervals, Labels, Run
from facm.data import InMemory


@dataclass(frozen=True)
class Moving:
    """A bright bar that moves to the right, or to the left: clips (1, 4, 8, 8)."""

    def open(self):
        clips = np.zeros((32, 1, 4, 8, 8), np.uint8)
        for i in range(32):
            for k in range(4):
                clips[i, 0, k, :, 2 * (k if i % 2 else 3 - k)] = 200 + i
        return InMemory(clips, np.arange(32) % 2, 2)


@dataclass(frozen=True)
class Convolution:
    def build(self):
        return Network()


class Network(torch.nn.Module):
    auxiliary_time = False

    def __init__(self):
        super().__init__()
        self.label, self.leave = torch.nn.Embedding(3, 1), torch.nn.Conv3d(2, 1, 3, padding=1)

    def forward(self, x, t, cond=None):
        more = (self.label(cond) + t[:, None])[:, :, None, None, None].expand_as(x)
        return self.leave(torch.cat([x, more], 1))


def moving() -> Run:
    return Run(Convolution(), Moving(), FlowMatching(Labels(2)), 32, 16, every=Intervals(log=16, checkpoint=32))
'''


@pytest.fixture
def no_ffmpeg(monkeypatch):
    for module in (ffmpeg, playing):
        monkeypatch.setattr(module, "program", lambda: None)


def test_a_network_of_ones_own_on_clips(tmp_path, monkeypatch, capsys, no_ffmpeg):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MOVING)
    command("train", "mine.py:moving", "--out", "run", "--quiet")
    with Image.open("run/samples/000000000032.png") as preview:  # 20 strips of 4 frames, 4 times as large
        assert preview.size == (4 * (4 * 9 - 1), 4 * (20 * 10 - 2))
    command("sample", "run", "--num-samples", 3, "--num-steps", 2, "--out", "x.png", "--npz")
    said = capsys.readouterr().out
    assert "x.png, 4 frames each (without ffmpeg there is no mp4: install ffmpeg, or pip" in said
    with Image.open("x.png") as drawn:
        assert drawn.size == (4 * 35, 4 * 28)
    images = arrays(tmp_path / "x.npz")
    assert images["images"].shape == (3, 4, 8, 8, 3)
    command("evaluate", "run", "--num-steps", 1, "--num-samples", 20, "--frames-per-clip", 2, "--quiet")
    row = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text())
    assert (row["n"], row["n_reference"], row["frames_per_clip"]) == (40, 64, 2)
    assert "--frames with run, which takes no prompts" in refused(capsys, "sample", "run", "--frames", 5)
    assert "--fps 0.0, expected a number above 0" in refused(capsys, "sample", "run", "--fps", 0)
    words = refused(capsys, "evaluate", "run", "--frames-per-clip", 0)
    assert "--frames-per-clip 0, expected at least 1" in words


@pytest.mark.skipif(ffmpeg.program() is None, reason=f"needs ffmpeg: {ffmpeg.HOW}")
def test_an_mp4_is_beside_the_picture_where_there_is_ffmpeg(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MOVING)
    command("train", "mine.py:moving", "--out", "run", "--quiet")
    assert (tmp_path / "run" / "samples" / "000000000032.mp4").exists()
    command("sample", "run", "--num-samples", 3, "--out", "x.png", "--fps", 12)
    assert "x.png and x.mp4, 4 frames each at 12 a second" in capsys.readouterr().out
    (tmp_path / "x.png").unlink()
    assert "x.mp4 exists and is not overwritten" in refused(capsys, "sample", "run", "--out", "x.png")


@pytest.mark.slow
def test_from_prompts_to_clips_of_a_student(tmp_path, monkeypatch, capsys, no_ffmpeg):
    pytest.importorskip("diffusers")
    from tests.evaluation.clip_parts import save_clip
    from tests.foundation.prepared_parts import prompts_file
    from tests.foundation.wan_parts import tiny_wan

    monkeypatch.chdir(tmp_path)
    tiny_wan(tmp_path / "wan")
    prompts_file(tmp_path, ["a fox", "a blue bird in snow"])
    teacher = ["--steps", 2, "--guidance-scale", 3, "--size", 32, 48, "--frames", 5]
    command("prepare", "--prompts", "prompts.txt", "--model", "wan", "--out", "data/z", *teacher)
    assert "32 x 48 (2), 5 frames each" in capsys.readouterr().out
    small = ["--images", 8, "--batch-size", 4, "--run.every.checkpoint", 8, "--run.every.log", 8]
    command("distill", "wan", "--data", "data/z", "--lora-rank", 2, *small, "--quiet")
    assert (tmp_path / "runs" / "z" / "samples" / "000000000008.png").exists()
    command("sample", "runs/z", "--prompt", "a dog", "--frames", 9, "--npz", "--out", "x.png", "--beside-teacher", 2)
    assert arrays(tmp_path / "x.npz")["images"].shape == (1, 9, 32, 48, 3)
    assert "--frames 6, expected 1 + a multiple of 4" in refused(
        capsys, "sample", "runs/z", "--prompt", "a", "--frames", 6
    ).replace("frames = 6", "--frames 6")
    rng = np.random.default_rng(0)
    (tmp_path / "real").mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "real" / f"{i}.png")
    (tmp_path / "mean.py").write_text(
        "import torch\n"
        "class Mean(torch.nn.Module):\n"
        "    num_features, num_classes, identity = 3, None, 'mean'\n"
        "    def forward(self, x):\n"
        "        return x.mean((2, 3))\n"
        "    def build(self, dataset, device):\n"
        "        return self\n"
    )
    save_clip(tmp_path / "clip")
    command(
        *("evaluate", "runs/z", "--num-steps", 1, "--num-samples", 3, "--frames-per-clip", 2, "--quiet"),
        *("--real", "real", "--features", "mean.py:Mean", "--clip", "clip"),
    )
    row = json.loads((tmp_path / "runs" / "z" / "evaluations.jsonl").read_text())
    assert (row["n"], row["n_reference"], row["frames_per_clip"]) == (6, 4, 2)
    assert row["clip_score"] is not None
    command("export", "runs/z", "--to", "lora", "--out", "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "num_frames=5" in card
    assert "height=32, width=48).frames[0]" in card
    assert 'export_to_video(frames, "fox.mp4", fps=16)' in card
    assert "text-to-video" in card
    lines = [line for line in card.split("```python")[1].split("```")[0].splitlines() if line]
    compile("\n".join(lines), "card", "exec")

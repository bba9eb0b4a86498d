"""From prompts to pictures of a student, by the commands of the README, on a tiny random model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file

from facm.runs.folder import open_run
from tests.cli.cli_parts import command, help_of, refused
from tests.distributed.parallel_parts import facm
from tests.evaluation.clip_parts import save_clip
from tests.foundation.prepared_parts import prompts_file
from tests.foundation.wan_parts import tiny_wan

SMALL = ["--images", 16, "--batch-size", 4, "--lr", 1e-3, "--run.every.checkpoint", 16, "--run.every.log", 16]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, data that it made, and a student with adapters."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("distill")
        patch.chdir(place)
        tiny_wan(place / "wan")
        prompts_file(place, ["a fox", "a blue bird in snow", "seven", "a cat"])
        teacher = ["--steps", 2, "--guidance-scale", 3, "--size", 32]
        command("prepare", "--prompts", "prompts.txt", "--model", "wan", "--out", "data/z", *teacher, "--quiet")
        command("distill", "wan", "--data", "data/z", "--lora-rank", 2, "--smooth", 100, *SMALL, "--quiet")
    return place


def pictures(folder, n):
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def place(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def test_a_run_is_named_after_its_data_and_records_the_base(place):
    _, run = open_run(place / "runs" / "z")
    assert (run.network.lora.rank, run.network.smooth) == (2, 100.0)
    assert run.network.sha256
    assert run.objective.velocity.guidance.scale == 3.0  # which the data were made with
    assert (place / "runs" / "z" / "samples" / "000000000016.png").exists()  # 1, 2, 4 steps and the teacher


def test_prompts_are_drawn_beside_the_teacher(place, capsys):
    command(
        "sample", "runs/z", "--num-steps", 2, "--prompt", "a fox", "a house", "--beside-teacher", 2, "--out", "a.png"
    )
    assert "2 samples, Consistency with 2 evaluations: a.png" in capsys.readouterr().out
    command("sample", "runs/z", "--out", "b.png")
    assert "4 samples" in capsys.readouterr().out  # the data's own prompts
    (place / "three.txt").write_text("one\n\n" + "long " * 120 + "\nthree\n")
    command("sample", "runs/z", "--prompts", "three.txt", "--height", 16, "--width", 32, "--out", "c.png")
    said = capsys.readouterr()
    assert "3 samples" in said.out
    assert "is cut: number 2, 'long long" in said.err
    assert "without its last " in said.err


@pytest.mark.slow
def test_it_is_evaluated_by_clip_and_against_pictures(place, capsys):
    save_clip(place / "clip")
    pictures(place / "real", 20)
    (place / "own.py").write_text("from facm.evaluation import Identity\n\n\ndef flat():\n    return Identity()\n")
    few = ["--num-steps", 1, 2, "--num-samples", 6]
    command("evaluate", "runs/z", "--clip", "clip", *few)
    assert "CLIP score: " in capsys.readouterr().out
    command("evaluate", "runs/z", "--clip", "clip", "--real", "real", "--features", "own.py:flat", "--small-n", *few)
    rows = [json.loads(line) for line in (place / "runs/z/evaluations.jsonl").read_text().splitlines()]
    assert [row["nfe"] for row in rows] == [1, 2, 1, 2]
    assert [row["frechet_distance"] is None for row in rows] == [True, True, False, False]
    assert [row["clip_score"] for row in rows[:2]] == [row["clip_score"] for row in rows[2:]]
    assert rows[0]["clip_score"] != rows[1]["clip_score"]


@pytest.mark.slow
def test_ranks_score_as_one_process_does(place, tmp_path):
    save_clip(tmp_path / "clip")
    scores = []
    for ranks in (1, 2):
        run = shutil.copytree(place / "runs" / "z", tmp_path / f"ranks{ranks}")
        (run / "evaluations.jsonl").unlink(missing_ok=True)
        status, _, said = facm(
            ranks, "evaluate", run, "--clip", tmp_path / "clip", "--num-samples", 7, "--num-steps", 1, "--quiet"
        )
        assert status == 0, said
        (row,) = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
        scores.append(row["clip_score"])
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", " "], "--prompt '' is empty"),
        (["--prompt", "a", "--prompts", "prompts.txt"], "--prompt with --prompts prompts.txt, expected one of them"),
        (["--height", "32"], "--height 32 and --width 0, expected both or neither"),
        (["--prompt", "a", "--height", "17", "--width", "32"], "height = 17, expected a multiple of 16"),
        (["--beside-teacher", "-1"], "--beside-teacher -1, expected 0 or more"),
        (["--classes", "3"], "--classes 3, but the network takes prompts"),
    ],
)
def test_what_cannot_be_drawn_is_named(place, capsys, arguments, words):
    assert words in refused(capsys, "sample", "runs/z", *arguments, "--out", "never.png")
    assert not (place / "never.png").exists()


def test_the_probe_shows_each_cutoff_and_trains_nothing(place, capsys):
    command("distill", "wan", "--data", "data/z", "--probe")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one batch of 4, |F| = ")
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[2:-1]]
    assert len(shares) == 7
    assert shares[0] > shares[-1]  # without the fast sinusoids the tangent is small
    assert [path.name for path in (place / "runs").iterdir()] == ["z"]


def test_a_dry_run_says_what_would_be_loaded_and_loads_nothing(place, capsys, monkeypatch):
    monkeypatch.setattr("facm.foundation.folder._whole", lambda *_: pytest.fail("weights are read"))
    command("distill", "wan", "--data", "data/z", "--lora-rank", 2, "--out", "runs/new", "--dry-run")
    said = capsys.readouterr().out
    assert "of them trained; initial weights: the model's" in said
    assert "teacher: OwnBase(), inside the network" in said
    assert "loads: wan/transformer, 1 files, 0.00" in said
    assert "would write to runs/new" in said
    assert not (place / "runs" / "new").exists()


def test_all_weights_are_trained_and_fine_tuned(place, capsys):
    smooth = ["--smooth", 100]
    command("finetune", "wan", "--data", "data/z", *SMALL, *smooth, "--quiet")
    tuned = ["--teacher", "runs/z-teacher", *smooth, "--guidance-scale", 1, "--out", "runs/whole"]
    command("distill", "wan", "--data", "data/z", *SMALL, *tuned, "--quiet")
    command("sample", "runs/whole", "--prompt", "a fox", "--out", "whole.png")
    _, run = open_run(place / "runs" / "whole")
    assert run.network.lora is None
    assert run.objective.velocity.guidance.scale == 1.0
    with_adapters = ["--lora-rank", 2, "--teacher", "runs/z-teacher", "--out", "runs/never"]
    assert "adapters are added to the model itself" in refused(
        capsys, "distill", "wan", "--data", "data/z", *with_adapters
    )


def test_another_model_is_refused(place, capsys, tmp_path):
    other = tiny_wan(tmp_path / "other")
    config = other / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latents_std": [1.0, 2.0, 0.5, 3.0]}))
    words = refused(capsys, "distill", other, "--data", "data/z", "--out", "runs/never")
    assert "was prepared with another model" in words
    assert "which has vae" in words
    assert not (place / "runs" / "never").exists()


def test_a_run_with_adapters_is_not_gone_on_from_on_another_base(made, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    wan = tiny_wan(tmp_path / "wan")
    command("distill", "wan", "--data", made / "data" / "z", "--lora-rank", 2, *SMALL, "--quiet", "--out", "run")
    weights = wan / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: value + 0.5 for name, value in tensors.items()}, weights, {"format": "pt"})
    assert "holds a transformer with the hash" in refused(capsys, "sample", "run", "--out", "never.png")
    assert "holds a transformer with the hash" in refused(capsys, "resume", "run")
    (wan / "model_index.json").unlink()
    assert "wan is no model, expected a folder with model_index.json" in refused(capsys, "resume", "run")


def test_what_is_no_recipe_for_a_model_is_named(place, capsys):
    assert "expected the folder of a model, as in facm distill ./Z-Image" in refused(capsys, "distill")
    assert "a network of your own is distilled in Python" in refused(capsys, "distill", "net.py:net", "--data", "x")
    assert "x.pytorch is no model" in refused(capsys, "distill", "x.pytorch", "--data", "data/z")
    assert "nowhere is no model" in refused(capsys, "distill", "nowhere", "--data", "data/z")
    assert "expected --data FOLDER, which facm prepare wrote" in refused(capsys, "distill", "wan")
    for words in (["wan", "-h"], ["-h"], ["wan", "--data", "data/z", "--help-all"]):
        assert "--lora-rank" in help_of(capsys, "distill", *words)
    too_large = ["--lora-rank", 1000, "--out", "runs/never"]
    assert "--lora-rank 1000, expected at most 24" in refused(capsys, "distill", "wan", "--data", "data/z", *too_large)
    assert "--student high, expected one of one, high-noise" in refused(
        capsys, "distill", "wan", "--data", "data/z", "--student", "high"
    )
    assert "--data data/gone, expected an existing folder" in refused(capsys, "distill", "wan", "--data", "data/gone")
    assert "expected no folder, but a name, such as digits-student" in refused(capsys, "plan", "runs/z")
    wrong = ["--lora-rank", 2, "--run.network.lora.targets", "no_such_layer", "--out", "runs/never"]
    assert "no_such_layer" in refused(capsys, "distill", "wan", "--data", "data/z", *wrong)
    assert "bf16" in refused(capsys, "distill", "wan", "--data", "data/z", "--base", "bf16", "--out", "runs/never")

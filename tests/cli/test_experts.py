"""Wan 2.2 on the command line: prepared, distilled into one student and into a pair, sampled and exported."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")

from facm.runs.folder import open_run
from tests.cli.cli_parts import command, refused
from tests.evaluation.clip_parts import save_clip
from tests.foundation.prepared_parts import prompts_file
from tests.foundation.wan_parts import BOUNDARY, tiny_wan22

pytestmark = pytest.mark.slow
SMALL = ["--images", 8, "--batch-size", 4, "--lr", 1e-3, "--run.every.checkpoint", 8, "--run.every.log", 8, "--quiet"]
SCALES = ["--guidance-scale", 3, "--guidance-scale-2", 2]
LOW, HIGH = "runs/z-low-noise", "runs/z-high-noise"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model of two experts, data that they made, one student of both, and a pair."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("experts")
        patch.chdir(place)
        tiny_wan22(place / "wan")
        prompts_file(place, ["a fox", "a blue bird in snow", "seven", "a cat"])
        teacher = ["--steps", 3, *SCALES, "--size", 32, "--resident", "one"]
        command("prepare", "--prompts", "prompts.txt", "--model", "wan", "--out", "data/z", *teacher, "--quiet")
        for student in ("one", "high-noise", "low-noise"):
            lora = ["--lora-rank", 2, "--student", student]
            command("distill", "wan", "--data", "data/z", *lora, *SCALES, *SMALL)
    return place


@pytest.fixture
def place(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def test_runs_are_named_after_the_half_they_are(place):
    parts = {name: open_run(place / "runs" / name)[1].network.part for name in ("z", "z-high-noise", "z-low-noise")}
    assert list(parts.values()) == ["transformer_2", "transformer", "transformer_2"]
    manifest = json.loads((place / "data/z/manifest.json").read_text())
    assert (manifest["teacher"]["guidance_scale_2"], manifest["teacher"]["boundary"]) == (2, BOUNDARY)
    assert (place / "runs/z/samples/000000000008.png").exists()
    assert not (place / LOW / "samples").exists() or not list((place / LOW / "samples").iterdir())


def test_a_pair_is_drawn_beside_its_teachers(place, capsys):
    command("sample", LOW, "--high-noise", HIGH, "--num-steps", 3, "--beside-teacher", 4, "--out", "pair.png")
    out = capsys.readouterr().out
    assert "4 samples, Phased with 3 evaluations: pair.png" in out
    assert HIGH in out
    save_clip(place / "clip")
    command("evaluate", LOW, "--high-noise", HIGH, "--clip", "clip", "--num-steps", 2, "--num-samples", 4, "--quiet")
    row = json.loads((place / LOW / "evaluations.jsonl").read_text())
    assert row["nfe"] == 2
    assert HIGH in row["weights"]


def test_all_weights_learn_from_both_experts(place):
    whole = ["--student", "one", "--resident", "one", "--out", "runs/whole"]
    command("distill", "wan", "--data", "data/z", *whole, *SCALES, *SMALL)
    command("export", "runs/whole", "--to", "lora", "--lora-rank", 3, "--out", "whole-lora")


def test_each_form_of_export(place, capsys):
    pair = [LOW, "--high-noise", HIGH]
    command("export", *pair, "--to", "diffusers", "--out", "pair")
    command("export", *pair, "--to", "diffusers", "--num-steps", 4, "--scheduler", "facm", "--out", "pair-4")
    command("export", *pair, "--to", "lora", "--out", "pair-lora")
    command("export", "runs/z", "--to", "diffusers", "--out", "one")
    command("export", HIGH, "--to", "comfyui", "--out", "high.safetensors")
    said = json.loads((place / "pair/facm_export.json").read_text())
    assert (said["run"], said["run_high_noise"]) == ("z-low-noise", "z-high-noise")
    index = json.loads((place / "pair/model_index.json").read_text())
    assert index["boundary_ratio"] == pytest.approx(BOUNDARY + 5e-4)
    assert json.loads((place / "one/model_index.json").read_text())["transformer_2"] == [None, None]
    assert sorted(file.name for file in (place / "pair-lora").iterdir() if file.is_dir()) == ["high_noise", "low_noise"]


def test_fine_tuned_experts_are_one_model_that_teaches(place, capsys):
    tuned = ["runs/z-low-noise-teacher", "--high-noise", "runs/z-high-noise-teacher"]
    for expert in ("high-noise", "low-noise"):
        command("finetune", "wan", "--data", "data/z", "--expert", expert, *SMALL)
    command("sample", *tuned, "--num-steps", 3, "--out", "tuned.png")
    assert "Euler with 3 evaluations" in capsys.readouterr().out
    command("export", *tuned, "--to", "diffusers", "--out", "tuned")
    index, at_first = (json.loads((place / path / "model_index.json").read_text()) for path in ("tuned", "wan"))
    assert index["boundary_ratio"] == at_first["boundary_ratio"] == BOUNDARY
    assert index["transformer_2"] == at_first["transformer_2"]
    weights = [
        load_file(place / model / part / "diffusion_pytorch_model.safetensors")["proj_out.weight"]
        for model in ("tuned", "wan")
        for part in ("transformer", "transformer_2")
    ]
    assert all(not torch.equal(a, b) for a, b in combinations(weights, 2))
    made = ["--model", "tuned", "--out", "data/tuned", "--steps", 3, *SCALES, "--size", 32, "--quiet"]
    command("prepare", "--prompts", "prompts.txt", *made)
    command("distill", "tuned", "--data", "data/tuned", "--lora-rank", 2, *SMALL)
    said = refused(capsys, "sample", tuned[0], "--high-noise", HIGH)
    assert f"{HIGH} was distilled and {tuned[0]} fine-tuned, expected both halves from facm distill, or both" in said
    assert "which makes no samples alone" in refused(capsys, "export", tuned[0], "--to", "diffusers", "--out", "half")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", LOW], f"{LOW} is the low-noise half of a pair, which makes no samples alone"),
        (["sample", HIGH], f"{HIGH} is the high-noise half of a pair, which makes no samples alone"),
        (
            ["sample", HIGH, "--high-noise", LOW],
            f"{HIGH} is the high-noise half of a pair, expected the low-noise half",
        ),
        (["sample", "runs/z", "--high-noise", HIGH], "runs/z is one student of all times, expected the low-noise half"),
        (
            ["sample", LOW, "--high-noise", "runs/z"],
            "--high-noise runs/z is one student of all times, expected the high",
        ),
        (["sample", LOW, "--high-noise", HIGH, "--num-steps", 1], "--num-steps 1, expected at least 2, one evaluation"),
        (["export", LOW, "--to", "diffusers", "--out", "x"], f"{LOW} is the low-noise half of a pair"),
        (
            ["export", LOW, "--high-noise", HIGH, "--to", "comfyui", "--out", "x.safetensors"],
            f"--high-noise {HIGH} with --to comfyui, which has a file for each half",
        ),
        (
            ["export", LOW, "--high-noise", HIGH, "--to", "diffusers", "--num-steps", 4, "--out", "x"],
            "--num-steps 4 with --scheduler stock and a student of the phases",
        ),
        (
            ["export", LOW, "--high-noise", HIGH, "--to", "lora", "--num-steps", 1, "--out", "x"],
            "--num-steps 1 with a student of 2 phases, expected 2 to 8",
        ),
        (
            ["finetune", "wan", "--data", "data/z"],
            "wan has two experts, each of which is fine-tuned in a run of its own: expected --expert high-noise",
        ),
        (
            ["distill", "wan", "--data", "data/z", "--lora-rank", 2, "--student", "low-noise", "--out", "runs/z"],
            "--out runs/z is in use and is never overwritten",
        ),
    ],
)
def test_what_cannot_be_is_named(place, capsys, words, message):
    assert message in refused(capsys, *words)
    assert not (place / "x").exists()

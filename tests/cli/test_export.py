"""facm export RUN --to diffusers | lora | comfyui."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from facm.foundation.folder import open_model
from facm.runs.folder import create
from facm.training.loop import train
from tests.cli.cli_parts import command, refused
from tests.foundation import recipe_of_wan_parts
from tests.foundation.wan_parts import tiny_wan, wan_run

PARTS = Path(recipe_of_wan_parts.__file__)


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs "adapters" and "whole", whose recipe is trusted."""
    folder = tmp_path_factory.mktemp("students")
    model = tiny_wan(folder / "model")
    for name, lora in (("adapters", True), ("whole", False)):
        run = wan_run(model, lora, images=16)
        train(run, create(folder / name, run, None, PARTS))
        command("show", folder / name, "--trust-recipe")
    return folder


def test_each_form_is_written_and_says_where_it_comes_from(students, tmp_path, capsys):
    run = students / "adapters"
    command("export", run, "--to", "diffusers", "--out", tmp_path / "folder", "--num-steps", 4)
    command("export", run, "--to=lora", "--out", tmp_path / "new" / "lora")
    command("export", run, "--to", "comfyui", "--raw", "--out", tmp_path / "comfy.safetensors", "--dtype", "bf16")
    said = capsys.readouterr().out
    assert f"EMA 0.05 at 16 images: {tmp_path / 'folder'}" in said
    assert f"raw at 16 images: {tmp_path / 'comfy.safetensors'}" in said
    assert open_model(tmp_path / "folder").pipeline == "WanPipeline"
    scheduler = json.loads((tmp_path / "folder/scheduler/scheduler_config.json").read_text())
    assert scheduler["shift_terminal"] == 0.25
    command(
        "export", run, "--to", "diffusers", "--out", tmp_path / "both", "--num-steps", 3, "--scheduler", "flow-jump"
    )
    assert open_model(tmp_path / "both").parts["scheduler"][1] == "FlowJumpScheduler"
    with safe_open(tmp_path / "comfy.safetensors", "pt") as file:
        assert all(file.get_tensor(name).dtype == torch.bfloat16 for name in file.keys())  # noqa: SIM118
        origins = [json.loads(file.metadata()["facm_export"])]
    origins += [json.loads((tmp_path / name / "facm_export.json").read_text()) for name in ("folder", "new/lora")]
    for origin in origins:
        assert origin["run"] == "adapters"
        assert len(origin["checkpoint_sha256"]) == 64
        assert origin["base_transformer"] == open_model(students / "model").identity("transformer")["transformer"]


def test_all_weights_become_adapters_of_the_rank_asked_for(students, tmp_path, capsys):
    out = tmp_path / "lora"
    assert "--lora-rank is missing" in refused(capsys, "export", students / "whole", "--to", "lora", "--out", out)
    command("export", students / "whole", "--to", "lora", "--lora-rank", 4, "--out", out)
    assert "Adapters of rank 4 hold " in capsys.readouterr().out
    assert "of the squared change of the linear layers" in (out / "README.md").read_text()
    words = refused(capsys, "export", students / "whole", "--to", "lora", "--lora-rank", 4000, "--out", tmp_path / "b")
    assert "--lora-rank 4000, expected 1 to " in words


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--to", "diffusers", "--out", "a", "--num-steps", 9), "--num-steps 9, expected 1 to 8"),
        (("--to", "comfyui", "--out", "a"), "--out a with --to comfyui, expected a name that ends in .safetensors"),
        (("--to", "lora", "--out", "a.safetensors"), "--to lora, expected the name of a folder"),
        (("--to", "diffusers", "--out", "a", "--lora-rank", 3), "--lora-rank 3 with --to diffusers"),
        (("--to", "lora", "--out", "a", "--lora-rank", 3), "--lora-rank 3 with a run that trained adapters of rank 4"),
        (("--to", "lora", "--out", "."), "--out . exists and is not overwritten"),
    ],
)
def test_what_cannot_be_written_is_said(students, tmp_path, capsys, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, "export", students / "adapters", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_kind(runs, tmp_path, capsys):
    words = refused(capsys, "export", runs / "teacher", "--to", "diffusers", "--out", tmp_path / "a")
    assert "expected the run of a text-to-image model" in words


def test_without_diffusers(students, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    words = refused(capsys, "export", students / "adapters", "--to", "lora", "--out", tmp_path / "a")
    assert "pip install 'facm[hf]'" in words

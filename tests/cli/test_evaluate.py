"""facm evaluate: rows with their provenance."""

import json
import re
import shutil

import numpy as np
import torch
from PIL import Image

import facm
from facm.runs.folder import open_run
from tests.cli.cli_parts import command, refused


def test_rows_carry_their_whole_provenance(runs, capsys, tmp_path):
    run = shutil.copytree(runs / "student", tmp_path / "student")
    command("evaluate", run, "--num-steps", 1, 2, "--num-samples", 32, "--seed", 5, "--ema", 0.2)
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [row["nfe"] for row in rows] == [1, 2]
    folder, _ = open_run(run)
    for row in rows:
        assert row["sampler"] == "consistency"
        assert (row["n"], row["n_reference"], row["seed"], row["ema"], row["images"]) == (32, 1797, 5, 0.2, 48)
        assert row["guidance"] == {"type": "facm:Guidance", "scale": 1.0, "low": 0.125, "high": 1.0}
        assert row["checkpoint"] == facm.runs.checkpoint.load(folder.checkpoints()[-1]).sha256
        assert row["features"].startswith("small-classifier-")
        assert len(row["reference"]) == 64
        assert row["versions"]["torch"] == torch.__version__
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", row["date"])
        assert row["labels"] == "balanced"
        assert row["quantised"] == "rounded to 8 bits"
        assert row["method"]["nfe"] == row["nfe"]
        assert row["threads"] == torch.get_num_threads()
        assert row["device"] == "cpu"
        assert row["run"] == str(run)
        assert np.isfinite(row["frechet_distance"])
        assert 0 <= row["accuracy"] <= 1
    assert "consistency" in said
    assert "1797 real samples" in said


def test_the_same_evaluation_gives_the_same_numbers(runs, tmp_path):
    run = shutil.copytree(runs / "teacher", tmp_path / "teacher")
    for _ in range(2):
        command("evaluate", run, "--num-steps", 2, "--num-samples", 20, "--quiet")
    one, two = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    timed = ("seconds", "date")
    assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}


def test_data_that_are_gone_are_named(recipes, capsys):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (recipes / "pictures" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(recipes / "pictures" / name / "x.png")
    (recipes / "more.py").write_text(
        "from facm import FlowMatching, Labels, Run\n"
        "from facm.data import ImageFolder\n"
        "from facm.networks.lightning_dit import LightningDiT\n"
        "def run():\n"
        "    network = LightningDiT(8, 4, 3, 16, 1, 2, num_classes=2)\n"
        "    return Run(network, ImageFolder('pictures', 8), FlowMatching(Labels(2)), 32, 16)\n"
    )
    command("train", "more.py:run", "--quiet")
    shutil.rmtree(recipes / "pictures")
    for what in ("sample", "evaluate", "resume"):
        assert "path = 'pictures', expected an existing folder" in refused(capsys, what, "runs/run")

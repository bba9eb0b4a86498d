"""The example that the documentation shows: a network, data and an objective of one's own, from one file."""

import json

import pytest

from facm import cli
from facm.pretrained.trained import load_trained
from facm.runs.folder import open_run
from facm.runs.recipe_file import load_module
from tests.paths import ROOT
from tests.training.run_parts import Crash, before_step, contents, crash_at

EXAMPLE = ROOT / "examples" / "mine.py"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A short teacher and its student, where the example's own commands put them."""
    monkeypatch.chdir(tmp_path)
    short = ("--images", "512", "--quiet", "--run.every.checkpoint", "256")
    cli.main(["train", f"{EXAMPLE}:teacher", "--out", "runs/moons-teacher", *short])
    cli.main(["train", f"{EXAMPLE}:student", "--out", "runs/moons-student", *short])
    return tmp_path / "runs"


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_it_trains_distils_evaluates_and_shows(trained, capsys):
    cli.main(["evaluate", "runs/moons-teacher", "--nfe", "8", "--n", "100"])
    cli.main(["evaluate", "runs/moons-student", "--nfe", "1", "2", "--n", "100"])
    rows = [json.loads(line) for line in (trained / "moons-student" / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["nfe"], row["sampler"], row["features"]) for row in rows] == [
        (1, "consistency", "identity"),
        (2, "consistency", "identity"),
    ]
    assert all(row["accuracy"] is None and row["frechet_distance"] > 0 for row in rows)
    cli.main(["show", "runs/moons-student"])
    assert "MoonNet" in capsys.readouterr().out


def test_the_student_starts_from_its_teacher_and_moves_away(trained):
    first = load_trained(trained / "moons-teacher").network.state_dict()
    last = load_trained(trained / "moons-student", raw=True).network.state_dict()
    assert all(0 < (last[name] - value).abs().max() < 0.1 for name, value in first.items())


def test_its_own_classes_come_back_from_the_run_folder(trained):
    module = load_module(EXAMPLE, EXAMPLE.stem)
    folder, run = open_run(trained / "moons-teacher")
    assert run.network == module.MoonNetConfig()
    assert type(run.data).__name__ == "TwoMoons"
    assert (folder.path / "recipe.py").read_bytes() == EXAMPLE.read_bytes()


def test_it_resumes_as_if_it_had_not_been_interrupted(trained):
    command = ["train", f"{EXAMPLE}:student", "--out", "runs/again", "--images", "512", "--quiet"]
    with pytest.raises(Crash), before_step(crash_at(384)):
        cli.main([*command, "--run.every.checkpoint", "256"])
    cli.main(["resume", "runs/again", "--quiet"])
    assert contents(open_run(trained / "again")[0]) == contents(open_run(trained / "moons-student")[0])

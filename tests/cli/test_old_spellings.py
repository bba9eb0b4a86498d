"""Every old spelling of a command or an option still works."""

import json
import shutil

import pytest

from facm.cli.main import COMMANDS, OLD_NAMES
from tests.cli.cli_parts import arrays, command, help_of
from tests.cli.test_latents import ENCODE, place  # noqa: F401 (a fixture)

TESTED = {
    ("sample", "--nfe"),
    ("sample", "--n"),
    ("sample", "--batch"),
    ("sample", "--from"),
    ("evaluate", "--nfe"),
    ("evaluate", "--n"),
    ("evaluate", "--batch"),
    ("evaluate", "--from"),
    ("study", "--n"),
    ("latents encode", "--batch"),
}


def test_every_old_spelling_is_tested_here():
    assert {(name, old) for name, command_ in COMMANDS.items() for old in command_.old} == TESTED
    assert set(OLD_NAMES) == {"prepare", "verify", "export", "import"}


def rows(run):
    taken_off = ("date", "seconds", "run")
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in taken_off} for line in lines]


def test_old_options_of_sample_and_evaluate(runs, tmp_path):
    old, new = (shutil.copytree(runs / "teacher", tmp_path / name) for name in ("old", "new"))
    command("sample", old, "--nfe", 2, "--n=5", "--batch", 2, "--npz", "--out", tmp_path / "old.png")
    options = ["--num-steps", 2, "--num-samples=5", "--batch-size", 2, "--npz"]
    command("sample", new, *options, "--out", tmp_path / "new.png")
    one, two = (arrays(tmp_path / f"{name}.npz") for name in ("old", "new"))
    assert (one["images"] == two["images"]).all()
    assert len(one["images"]) == 5
    command("evaluate", old, "--nfe", 1, 2, "--n", 20, "--batch=7", "--quiet")
    command("evaluate", new, "--num-steps", 1, 2, "--num-samples", 20, "--batch-size", 7, "--quiet")
    assert rows(old) == rows(new)
    assert [row["nfe"] for row in rows(old)] == [1, 2]


def test_from_names_a_file(runs, tmp_path, capsys):
    file = tmp_path / "a.safetensors"
    command("export", runs / "teacher", "--out", file)
    assert "EMA 0.05 at 64 images" in capsys.readouterr().out
    command("import", file, "--out", tmp_path / "b.safetensors")
    command("sample", "--nfe", 1, "--n", 2, "--from", file, "--out", tmp_path / "x.png")
    command("sample", f"--from={file}", "--out", tmp_path / "y.png", "--n", 2)
    said = capsys.readouterr().out
    assert f"EMA 0.05 of {file}, facm, (1, 8, 8)" in said
    assert said.count(f"EMA 0.05 of {file}\n") == 2
    with pytest.raises(SystemExit):
        command("evaluate", "--nfe", 1, 2, "--from", file)
    assert f"{file} has no data of its own to be measured against" in capsys.readouterr().err


def test_prepare_and_verify(place, capsys):  # noqa: F811
    command("prepare", *ENCODE[2:], "--batch", 2)
    assert "6 images of 2 classes as latents (4, 2, 2) in 2 files" in capsys.readouterr().out
    command("verify", "latents")
    assert "6 latents (4, 2, 2) F32 in 2 files, whole" in capsys.readouterr().out


def test_the_number_of_samples_of_a_study(capsys):
    with pytest.raises(SystemExit):
        command("study", "stability", "--n", 1)
    assert "--num-samples 1, expected at least 2 samples" in capsys.readouterr().err


def test_show_lists_recipes_and_studies(capsys):
    command("show", "recipes")
    assert "digits-teacher" in capsys.readouterr().out
    command("show", "studies")
    assert "stability" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(OLD_NAMES.keys() - COMMANDS.keys()))  # others are new commands, too
def test_the_help_of_an_old_name_is_that_of_todays(capsys, name):
    assert help_of(capsys, name, "-h") == help_of(capsys, *OLD_NAMES[name].split(), "-h")


def test_pairs_of_flags_are_still_parsed(recipes):
    command("train", "mine.py:moons", "--no-resume", "--quiet", "--engine.no-checkpointing", "--images", 16)

"""facm list and facm show: what recipes and runs are."""

import shutil
import signal

import pytest

from facm.cli.lookup import STUDIES, recipes
from tests.cli.cli_parts import command, refused
from tests.training.run_parts import before_step, signal_at


def test_show_lists_the_recipes(capsys):
    command("show", "recipes")
    said = capsys.readouterr().out
    assert all(name in said for name in recipes())
    assert "A FACM student distilled from a digits teacher." in said


def test_show_tells_a_recipe_and_a_run(runs, recipes, capsys):
    command("show", "digits-student")
    said = capsys.readouterr().out
    assert all(part in said for part in ("FACM", "TeacherVelocity", "path = 'runs/digits-teacher'", "parameters: "))
    command("show", "mine.py:moons")
    assert "Moons" in capsys.readouterr().out
    command("show", runs / "student")
    said = " ".join(capsys.readouterr().out.split())
    assert "48 of 48 images (finished), 6 EMA snapshots" in said
    assert "last log record: images 48, loss" in said


def test_what_is_neither_a_run_nor_a_recipe_is_named(recipes, capsys):
    assert "'nosuch': no such run's folder, and no recipe of this name" in refused(capsys, "show", "nosuch")
    assert "no such run's folder" in refused(capsys, "show", "runs/nosuch")


def test_show_says_how_an_unfinished_run_goes_on(recipes, capsys):
    with before_step(signal_at(16, signal.SIGTERM)):
        command("train", "mine.py:moons", "--quiet", "--out", "[a] b")
    capsys.readouterr()
    command("show", "[a] b")
    said = " ".join(capsys.readouterr().out.split())
    assert "32 of 64 images (unfinished: facm resume [a] b)" in said


def test_show_reads_what_a_kill_left_of_the_evaluations(runs, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "student", run)
    (run / "evaluations.jsonl").write_text('{"nfe": 1, "samp')
    command("evaluate", run, "--num-steps", 1, "--num-samples", 4, "--quiet")
    command("show", run)
    assert "consistency" in capsys.readouterr().out


def test_show_of_what_is_nothing_is_an_error(tmp_path, capsys):
    assert f"{tmp_path} is a folder without run.json" in refused(capsys, "show", tmp_path)
    assert "did you mean digits-teacher" in refused(capsys, "show", "digits-techer")


def test_list_has_recipes_and_studies(capsys):
    command("list")
    said = capsys.readouterr().out
    assert all(f"\n{name}\n" in said for name in (*recipes(), *STUDIES))


def test_show_of_a_run_builds_no_features_and_no_reference_and_reads_no_data(runs, capsys, monkeypatch, tmp_path):
    run = shutil.copytree(runs / "student", tmp_path / "run")
    command("evaluate", run, "--num-steps", 1, "--num-samples", 4, "--quiet")
    for name in (
        "evaluation.classifier.SmallClassifier.build",
        "evaluation.reference.build_reference",
        "data.digits.Digits.open",
        "runs.checkpoint.load",
    ):
        monkeypatch.setattr(f"facm.{name}", lambda *a, **k: pytest.fail("more than show needs"))
    command("show", run)
    assert "consistency" in capsys.readouterr().out

"""facm check: what a file, a run and a recipe name, and the exit status."""

import pytest

from tests.cli.cli_parts import command, ended, refused

NETS = """
from tests.api.flows_parts import Flow, Labelled, normal_data

data = normal_data()
right = Flow()

def wrong():
    return Flow("negated")

def missing():
    raise FileNotFoundError("weights.pt")

def needs(width):
    return Flow()

labelled = Labelled(4)
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


@pytest.mark.slow
def test_the_exit_status_says_whether_something_is_wrong(nets, capsys):
    command("check", "nets.py:right", "--data", "nets.py:data")
    said = capsys.readouterr().out
    assert said.startswith("Flow: nothing is wrong\n")
    assert "samples: check.png" in said
    code, words = ended(capsys, "check", "nets.py:wrong", "--data", "nets.py:data")
    assert code == 1
    assert "Flow: 1 thing to mend WRONG convention" in words
    assert "write: return -out" in words
    assert (nets / "check-2.png").exists()


@pytest.mark.slow
def test_a_run_and_a_recipe_are_checked_as_they_are(runs, recipes, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command("check", runs / "student")
    said = capsys.readouterr().out
    assert "10 labels" in said
    assert "the network has learned its times" in said
    code, words = ended(capsys, "check", runs / "student", "--gpu-memory", 1)
    assert code == 1
    assert "WRONG memory" in words
    command("check", "digits-teacher")
    assert "starts from random weights" in capsys.readouterr().out


def test_what_cannot_be_checked_is_named(nets, capsys):
    assert "did you mean right" in refused(capsys, "check", "nets.py:righ", "--shape", 2, 6)
    assert "nets.py:missing' raised FileNotFoundError: weights.pt" in refused(capsys, "check", "nets.py:missing")
    assert "needs the arguments width" in refused(capsys, "check", "nets.py:needs", "--shape", 2, 6)
    assert "expected --data, what the network" in refused(capsys, "check", "nets.py:right")
    assert "there is no such file" in refused(capsys, "check", "no/run", "--shape", 2, 6)
    assert "--data nowhere, expected FILE.py:NAME" in refused(capsys, "check", "nets.py:right", "--data", "nowhere")
    said = refused(capsys, "check", "nets.py:right", "--shape", 2, 6, "--noise-at", 1)
    assert "--noise-at 1.0 without time_scale: expected time_scale, too" in said

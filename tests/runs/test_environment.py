"""What is recorded of where a command runs."""

import json
import subprocess

import pytest
import torch

import facm
from facm.runs.environment import environment
from tests.training.run_parts import flow_run, trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("finished") / "run", flow_run())


def test_the_environment_is_enough_to_run_it_again(finished):
    record = json.loads((finished.path / "environment.json").read_text())
    assert record["command"]
    assert record["facm"] == facm.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert {"numpy", "safetensors"} <= record["versions"].keys()
    assert record["threads"] == torch.get_num_threads()
    assert record["cores"] >= 1
    assert record["python"].startswith("3.")
    assert record["platform"]
    assert record["device"]


def test_the_environment_holds_commit_and_diff_whatever_bytes_the_diff_has(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "x.txt").write_bytes(b"old\n")
    git("add", "x.txt")
    git("commit", "-m", "x")
    (tmp_path / "x.txt").write_bytes(b"caf\xe9\n")
    monkeypatch.setattr("facm.runs.environment.__file__", str(tmp_path / "record.py"))
    record = environment()["git"]
    assert len(record["commit"]) == 40
    assert "-old" in record["diff"]
    monkeypatch.setattr("facm.runs.environment.__file__", "/record.py")
    assert environment()["git"] is None

"""Errors that a user can cause: one message in terms of the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from facm.cli.errors import in_flags
from tests.cli.cli_parts import command


def test_a_syntax_error_and_a_missing_import_are_one_line(recipes, capsys):
    (recipes / "bad.py").write_text("def run(:\n")
    (recipes / "lacks.py").write_text("import a_package_that_is_not_there\n")
    for file, words in (("bad.py", "(bad.py, line 1)"), ("lacks.py", "No module named 'a_package_that_is_not_there'")):
        with pytest.raises(SystemExit) as exit_:
            command("train", f"{file}:run")
        said = capsys.readouterr()
        assert exit_.value.code == 2
        assert words in said.err
        assert "Traceback" not in said.err


def test_the_users_bug_is_shown_with_its_place_or_wholly(recipes, capsys, monkeypatch):
    (recipes / "bug.py").write_text("def run():\n    return 1 + 'x'\n")
    with pytest.raises(SystemExit):
        command("train", "bug.py:run")
    assert re.search(
        r"unexpected TypeError in .*bug.py:2 .*FACM_DEBUG=1.*\nerror: unsupported operand", capsys.readouterr().err
    )
    monkeypatch.setenv("FACM_DEBUG", "1")
    with pytest.raises(TypeError):
        command("train", "bug.py:run")


@pytest.mark.slow
def test_the_installed_command_refuses_without_a_traceback(tmp_path):
    script = Path(sys.executable).with_name("facm")
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    arguments = [script, "train", "digits-student", "--guidance-scale", "0.5"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: guidance scale = 0.5, expected w >= 1 (w = 1 is no guidance)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("message", "command_", "said"),
    [
        ("out = runs/x exists and is not overwritten", "train", "--out runs/x exists and is not overwritten"),
        ("nfe = 4 with Heun, expected an odd number", "sample", "--num-steps 4 with Heun, expected an odd number"),
        ("sigma_rel = 0.7, expected a length", "sample", "--ema 0.7, expected a length"),
        ("batch_size = 0, expected at least 1", "evaluate", "--batch-size 0, expected at least 1"),
        ("batch_size = 7 over 2 ranks", "train", "--run.batch-size 7 over 2 ranks"),
        ("engine.cpu_offload = True with", "resume", "--engine.cpu-offload True with"),
        ("every.keep = 0, expected at least 1", "train", "--run.every.keep 0, expected at least 1"),
        ("guidance scale = 0.5, expected w >= 1", "train", "guidance scale = 0.5, expected w >= 1"),
        ("images = 0: zero steps train nothing", "train", "images = 0: zero steps train nothing"),
        ("the folder has out = x", "train", "the folder has out = x"),
    ],
)
def test_arguments_of_the_library_become_options(message, command_, said):
    assert in_flags(message, command_) == said

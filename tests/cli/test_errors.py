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
    assert done.stderr == "error: Guidance: scale = 0.5, expected a number within [1, 1e12]\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("message", "command_", "said"),
    [
        ("out = runs/x is in use", "train", "--out runs/x is in use"),
        ("out = runs/x holds a demo", "demo", "--out runs/x holds a demo"),
        ("Heun: nfe = 4, expected an odd number", "sample", "--num-steps 4, expected an odd number"),
        ("times = (0.0,) for nfe = 3, expected", "sample", "--times (0.0,) for --num-steps 3, expected"),
        ("sigma_rel = 0.7, expected a length", "sample", "--ema 0.7, expected a length"),
        ("raw = True with sigma_rel = 0.1: expected", "evaluate", "--raw with --ema 0.1: expected"),
        ("x.pt: expected family = 'sit' or family = 'repa'", "weights", "x.pt: expected --family sit or --family repa"),
        (
            "statistics = a.pt with scale = 2.0, expected",
            "sample",
            "--latent-stats a.pt with --latent-scale 2.0, expected",
        ),
        ("Guidance: scale = 0.5, expected a", "sample", "--guidance-scale 0.5, expected a"),
        ("Guidance: scale = 0.5, expected a", "train", "Guidance: scale = 0.5, expected a"),
        ("the data set has n = 3 samples", "evaluate", "the data set has n = 3 samples"),
        ("batch_size = 0, expected at least 1", "evaluate", "--batch-size 0, expected at least 1"),
        (
            "batch_size = 7 over 2 ranks with engine.accumulate = 3: expected",
            "train",
            "--run.batch-size 7 over 2 ranks with --engine.accumulate 3: expected",
        ),
        (
            "engine.cpu_offload = True with engine.parallel = 'ddp'",
            "resume",
            "--engine.cpu-offload with --engine.parallel ddp",
        ),
        ("Intervals: keep = 0, expected an", "train", "--run.every.keep 0, expected an"),
        ("AdamW: lr = nan, expected a", "plan", "--run.optimizer.lr nan, expected a"),
        ("AdamW: lr = nan, expected a", "sample", "AdamW: lr = nan, expected a"),
        ("Run: images = 0, expected an", "train", "--run.images 0, expected an"),
        ("data with 10 classes, condition = Labels(3)", "train", "data with 10 classes, condition = Labels(3)"),
        (
            "What helps: a larger engine.accumulate (smaller micro-batches), engine.parallel = 'fsdp' on several ranks",
            "train",
            "What helps: a larger --engine.accumulate (smaller micro-batches), --engine.parallel fsdp on several ranks",
        ),
        ("a lower optimizer.lr, precision = 'fp32'", "train", "a lower --run.optimizer.lr, precision = 'fp32'"),
        ("no snapshots (every.ema_snapshots = 0)", "sample", "no snapshots (every.ema_snapshots = 0)"),
        ("in distributed/engine.py: engine.py", "train", "in distributed/engine.py: engine.py"),
        ("task = '0/none', expected SEED/NAME", "study", "--only 0/none, expected SEED/NAME"),
        ("name = 'mnist', expected one of", "study", "--at mnist, expected one of"),
        (
            "expected learns_shortcut = True for a student, or False for a teacher",
            "sample",
            "expected --sampler consistency for a student, or --sampler euler for a teacher",
        ),
        (
            "expected statistics, such a file, or scale, a number for latents",
            "evaluate",
            "expected --latent-stats FILE, or --latent-scale NUMBER for latents",
        ),
    ],
)
def test_arguments_of_the_library_become_options(message, command_, said):
    assert in_flags(message, command_) == said

"""Signals: what is saved, and that going on equals no interruption."""

import os
import signal
import subprocess
import sys

import pytest

import facm.runs.checkpoint
from facm import cli
from facm.runs.folder import create, open_run
from facm.training.loop import train
from tests.training.run_parts import BATCH, before_step, contents, flow_run, signal_at, trained, whole_runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_runs(tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def hangs_up():
    """As where the tests are not started by nohup, which has SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "clock"),
    [(signal.SIGTERM, 0), (signal.SIGTERM, 48), (signal.SIGTERM, 160), (signal.SIGINT, 48), (signal.SIGHUP, 48)],
)
def test_a_signal_saves_and_resuming_changes_nothing(whole, tmp_path, number, clock):
    run, expected = whole["student"]
    folder = create(tmp_path / "run", run)
    with before_step(signal_at(clock, number)):
        outcome = train(run, folder)
    assert (outcome.finished, outcome.signal) == (False, number.name)
    assert outcome.images == clock + BATCH == int(folder.checkpoints()[-1].stem)
    train(run, folder)
    assert contents(folder) == expected


def test_a_signal_before_the_first_step_saves_too(whole, tmp_path, monkeypatch):
    run, expected = whole["flow"]
    folder = create(tmp_path / "run", run)
    original = facm.training.loop.build

    def build(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("facm.training.loop.build", build)
        assert train(run, folder).images == 0
    train(run, folder)
    assert contents(folder) == expected


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    run = flow_run()
    folder = create(tmp_path / "run", run)
    with pytest.raises(KeyboardInterrupt), before_step(signal_at(160, signal.SIGINT, times=2)):
        train(run, folder)
    assert [file.name for file in folder.checkpoints()] == [f"{80:012d}.safetensors", f"{160:012d}.safetensors"]


def test_the_handlers_are_given_back(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    trained(tmp_path / "run", flow_run())
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_closed_terminal_is_ignored_where_the_command_was_started_to_ignore_it(tmp_path):
    """As nohup starts it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = flow_run()
        with before_step(signal_at(48, signal.SIGHUP)):
            assert train(run, create(tmp_path / "run", run)).finished
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupted_command_says_how_to_go_on(whole, tmp_path, capsys):
    run, expected = whole["flow"]
    folder = create(tmp_path / "run", run)
    with before_step(signal_at(48, signal.SIGTERM)):
        cli.main(["resume", str(folder.path), "--quiet"])  # returning is exit code 0
    said = capsys.readouterr().out
    assert "SIGTERM: saved at 64 of 320 images" in said
    assert f"facm resume {folder.path}" in said
    cli.main(["resume", str(folder.path), "--quiet"])
    assert contents(folder) == expected


@pytest.mark.slow
def test_a_terminated_command_ends_well_and_is_resumed_by_another(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import os, signal\n"
        "from facm import FlowMatching, Labels, Run\n"
        "from facm.data import Moons\n"
        "from facm.networks.mlp import MLP\n"
        "from facm import Intervals\n"
        "from facm.data.stream import Stream\n"
        "original = Stream.at\n"
        "def at(self, images):\n"
        "    if images == 320:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return original(self, images)\n"
        "if 'STOP' in os.environ:\n"
        "    Stream.at = at\n"
        "def run(images: int = 800):\n"
        "    return Run(MLP(width=16, num_classes=2), Moons(n=99), FlowMatching(Labels(2)), images, 16,\n"
        "               every=Intervals(log=160, checkpoint=100_000, ema_snapshots=0))\n"
    )
    command = [sys.executable, "-m", "facm", "train", f"{recipe}:run", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "STOP": "at a step"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"facm resume {tmp_path / 'run'}" in done.stdout
    folder, run = open_run(tmp_path / "run")
    assert int(folder.checkpoints()[-1].stem) == 336
    train(run, folder)
    expected = contents(trained(tmp_path / "whole", run))
    assert contents(folder)["log"] == expected["log"]
    last = folder.checkpoint(run.images).name
    assert contents(folder)["files"][last] == expected["files"][last]

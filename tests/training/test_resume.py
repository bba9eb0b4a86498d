"""Resuming equals no interruption, bit for bit, however the run was interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import facm.runs.checkpoint
from facm import cli
from facm.distributed.engine import Engine
from facm.networks.mlp import MLP
from facm.runs import log as logs
from facm.runs.checkpoint import load
from facm.runs.folder import RunFolder, create, open_run
from facm.training.loop import train
from tests.paths import ROOT
from tests.training.run_parts import (
    BATCH,
    IMAGES,
    Crash,
    DrawsGlobally,
    before_step,
    contents,
    crash_at,
    facm_run,
    flow_run,
    in_child,
    log_of,
    signal_at,
    trained,
)

KINDS = ("flow", "global draws", "student")
DROPOUT = MLP(width=16, depth=1, num_classes=3, dropout=0.3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """kind -> (run, what the uninterrupted run leaves behind)."""
    root = tmp_path_factory.mktemp("whole")
    teacher = trained(root / "flow", flow_run())
    runs = {
        "flow": flow_run(),
        "global draws": flow_run(network=DROPOUT, objective=DrawsGlobally()),
        "student": facm_run(teacher.path, network=DROPOUT),
    }
    folders = {kind: trained(root / kind, run) for kind, run in runs.items() if kind != "flow"} | {"flow": teacher}
    return {kind: (run, contents(folders[kind])) for kind, run in runs.items()}


def interrupt(run, folder, clock):
    with pytest.raises(Crash), before_step(crash_at(clock)):
        train(run, folder)


def test_the_uninterrupted_run_leaves_everything_that_is_compared(whole):
    for _, left in whole.values():
        checkpoints = [name for name in left["files"] if "-" not in name]
        assert checkpoints == [f"{240:012d}.safetensors", f"{320:012d}.safetensors"]
        assert len(left["files"]) == 2 + 2 * 5  # two EMAs at 64, 128, 192, 256, 320
        assert [eval(record)["images"] for record in left["log"]] == [112, 224, 320]


def test_a_checkpoint_holds_network_ema_optimiser_log_window_and_generators(whole, tmp_path):
    run, _ = whole["flow"]
    saved = load(trained(tmp_path / "run", run).checkpoints()[0])
    assert {name.split("/")[0] for name in saved.tensors} == {"network", "ema", "optimizer", "window", "rng"}
    assert {"0.05", "0.2"} == {name.split("/")[0] for name in saved.part("ema")}
    assert {"exp_avg", "exp_avg_sq", "step"} == {name.split("/")[1] for name in saved.part("optimizer")}
    assert saved.meta["images"] == 240 == saved.meta["loader"]["position"]
    assert saved.meta["window"] == 1  # one step since the log record at 224


@pytest.mark.parametrize("clock", [0, 48, 80, 128, 304], ids=lambda clock: f"crash at {clock}")
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_changes_nothing(whole, tmp_path, kind, clock):
    """At once, before the first checkpoint, at a checkpoint, between two, and at the last step."""
    run, expected = whole[kind]
    folder = create(tmp_path / "run", run)
    interrupt(run, folder, clock)
    np.random.seed(7)  # what the next process has in its global generators is its own affair
    random.seed(7)
    torch.manual_seed(7)
    train(run, folder)
    assert contents(folder) == expected


def test_reading_ahead_changes_nothing(whole, tmp_path):
    run, expected = whole["student"]
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(112)):  # read while the step before it is computed
        train(run, folder, engine=Engine(prefetch="yes"))
    train(run, folder, engine=Engine(prefetch="yes"))
    assert contents(folder) == expected


def test_many_crashes_change_nothing(whole, tmp_path):
    run, expected = whole["student"]
    folder = create(tmp_path / "run", run)
    for clock in (48, 96, 96, 176, 240, 288):
        interrupt(run, folder, clock)
    train(run, folder)
    assert contents(folder) == expected


@pytest.mark.slow
def test_resuming_in_another_process_changes_nothing(whole, tmp_path):
    run, expected = whole["global draws"]
    recipe = tmp_path / "recipe.py"  # without one, the other process would not know the objective
    recipe.write_text("from tests.training.run_parts import DrawsGlobally\n")
    folder = create(tmp_path / "run", run, "recipe.py:run", recipe)
    interrupt(run, folder, 144)
    folders = (str(Path(facm.__file__).parents[1]), str(ROOT))  # this package, in that process too
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "facm", "resume", str(folder.path), "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert contents(folder) == expected


def test_resuming_a_finished_run_does_nothing(whole, tmp_path):
    run, expected = whole["flow"]
    folder = trained(tmp_path / "run", run)
    written = {file: file.stat().st_mtime_ns for file in (*folder.checkpoints(), *(folder.path / "ema").iterdir())}
    with before_step(lambda images: pytest.fail(f"a step at {images}")):
        outcome = train(run, folder)
    assert outcome.finished
    assert outcome.images == IMAGES
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert contents(folder) == expected


def test_a_longer_batch_than_the_rest_ends_the_run_once(tmp_path):
    """100 images in batches of 16 are seven steps, with a resume as without."""
    run = flow_run(images=100)
    expected = contents(trained(tmp_path / "whole", run))
    folder = create(tmp_path / "run", run)
    interrupt(run, folder, 96)
    assert train(run, folder).images == 112
    assert contents(folder) == expected


def test_the_callers_global_generators_are_given_back(tmp_path):
    def draws():
        return random.random(), np.random.rand(), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    trained(tmp_path / "run", flow_run(objective=DrawsGlobally()))
    assert draws() == expected


def test_a_callback_that_draws_does_not_change_the_run(whole, tmp_path):
    run, expected = whole["global draws"]
    folder = create(tmp_path / "run", run)
    train(run, folder, on_checkpoint=lambda state: (torch.rand(3), np.random.rand(), random.random()))
    assert contents(folder) == expected


def test_every_seed_gives_another_run(tmp_path):
    logs_of = [log_of(trained(tmp_path / str(seed), flow_run(seed=seed))) for seed in (0, 1)]
    assert logs_of[0] != logs_of[1]


def test_frozen_and_unused_parameters_resume(tmp_path):
    """The label embedding's row of the null class gets no gradient without dropout, r's weights get none at all."""
    run = flow_run(network=MLP(width=16, depth=1, num_classes=50))
    expected = contents(trained(tmp_path / "whole", run))
    folder = create(tmp_path / "run", run)
    interrupt(run, folder, 128)
    train(run, folder)
    assert contents(folder) == expected


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("clock", [0, 48, 160])
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
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    trained(tmp_path / "run", flow_run())
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


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


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def killed():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def nth(function, count, act):
    """``function`` whose ``count``-th call is ``act(original, *arguments)`` instead."""
    calls = [0]

    def call(*arguments, **options):
        calls[0] += 1
        return act(function, *arguments, **options) if calls[0] == count else function(*arguments, **options)

    return call


def kill_before(original, *arguments, **options):
    killed()


def kill_after(original, *arguments, **options):
    original(*arguments, **options)
    killed()


def kill_halfway(original, tensors, file, **options):
    original(tensors, file, **options)
    with open(file, "r+b") as written:
        written.truncate(os.path.getsize(file) // 2)
    killed()


def kill_in_line(original, path, record):
    with path.open("a") as file:
        file.write('{"images": 1')
    killed()


MOMENTS = {
    # The 4th file saved is the second checkpoint: 64 (two EMAs), 80, ...
    "before writing": ("safetensors.torch.save_file", kill_before),
    "half-written": ("safetensors.torch.save_file", kill_halfway),
    "before the rename": ("facm.core.files.os.replace", kill_before),
    "after the rename": ("facm.core.files.os.replace", kill_after),
    "before the sync": ("facm.core.files.os.fsync", kill_before),
    "in the log": ("facm.training.loop.log.append", kill_in_line),
}


@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_while_saving_changes_nothing(whole, tmp_path, monkeypatch, moment, count):
    run, expected = whole["flow"]
    folder = create(tmp_path / "run", run)
    target, act = MOMENTS[moment]
    count = min(count, 3) if moment == "in the log" else count
    syncing = moment == "before the sync" and count % 2 == 1  # the file; every other time it is the folder

    def child():
        monkeypatch.setattr(target, nth(monkeypatch_target(target), count, act))
        train(run, folder)

    assert in_child(child) == -signal.SIGKILL
    assert len(list(folder.path.rglob("*.partial"))) == (moment in ("half-written", "before the rename") or syncing)
    for file in folder.checkpoints():
        load(file)  # whole, whatever happened
    train(run, folder)
    assert contents(folder) == expected


def monkeypatch_target(dotted):
    module, _, name = dotted.rpartition(".")
    return getattr(
        {"facm.core.files.os": os, "facm.training.loop.log": logs}.get(module, sys.modules.get(module)), name
    )


def test_kills_at_random_steps_change_nothing(whole, tmp_path):
    """Each session is killed before one of its first eight steps; there are five from one checkpoint to the next."""
    run, expected = whole["student"]
    folder = create(tmp_path / "run", run)
    steps = random.Random(0)
    kills = 0
    for _ in range(8):
        left = [steps.randint(1, 8)]

        def act(images, left=left):
            left[0] -= 1
            if not left[0]:
                killed()

        def session(act=act):
            with before_step(act):
                train(run, folder)

        kills += in_child(session) == -signal.SIGKILL
    assert kills == 8 or folder.checkpoint(run.images).exists()
    assert kills >= 4
    train(run, folder)
    assert contents(folder) == expected


def test_leftovers_of_a_kill_are_never_taken_for_checkpoints(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ema").mkdir()
    (folder.checkpoint(64).with_name(f".{folder.checkpoint(64).name}.partial")).touch()
    (folder.ema_snapshot(64, 0.05).with_name(f".{folder.ema_snapshot(64, 0.05).name}.partial")).touch()
    assert folder.checkpoints() == [] == folder.ema_snapshots()


def test_a_log_line_cut_short_is_left_out_and_stays_alone(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"images": 1}\n{"ima')
    assert logs.read(log) == [{"images": 1}]
    logs.append(log, {"images": 2})
    assert logs.read(log) == [{"images": 1}, {"images": 2}]
    logs.rewind(log, 1)
    assert log.read_text() == '{"images": 1}\n'


@pytest.mark.slow
def test_a_terminated_command_ends_well_and_is_resumed_by_another(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import time\n"
        "from dataclasses import dataclass\n"
        "from facm import FlowMatching, Labels, Run\n"
        "from facm.data import Moons\n"
        "from facm.networks.mlp import MLP\n"
        "from facm import Intervals\n"
        "def run(images: int = 8_000):\n"
        "    return Run(MLP(width=16, num_classes=2), Moons(n=99), FlowMatching(Labels(2)), images, 16,\n"
        "               every=Intervals(log=160, checkpoint=100_000, ema_snapshots=0))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "facm", "train", f"{recipe}:run", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "log.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert f"facm resume {tmp_path / 'run'}" in said
    folder, run = open_run(tmp_path / "run")
    assert 0 < int(folder.checkpoints()[-1].stem) < run.images
    train(run, folder)
    expected = contents(trained(tmp_path / "whole", run))
    assert contents(folder)["log"] == expected["log"]
    last = folder.checkpoint(run.images).name
    assert contents(folder)["files"][last] == expected["files"][last]

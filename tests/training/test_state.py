"""What a checkpoint holds, what it is refused for, and how many are kept."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import facm.runs.checkpoint
from facm.core.hashing import digest
from facm.core.state_dict import CheckpointError
from facm.distributed.process_group import World
from facm.networks.mlp import MLP
from facm.pretrained.trained import FromRun, load_trained
from facm.runs import log as logs
from facm.runs.checkpoint import Checkpoint, load
from facm.runs.checkpointer import Stored
from facm.runs.folder import create
from facm.training import state
from facm.training.loop import train
from tests.paths import ROOT
from tests.training.run_parts import (
    EVERY,
    KINDS,
    Crash,
    before_step,
    contents,
    crash_at,
    facm_run,
    flow_run,
    in_child,
    interrupt,
    trained,
    whole_runs,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("finished") / "run", flow_run())


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run, to be spoilt."""
    return type(finished)(shutil.copytree(finished.path, tmp_path / "copy"))


def test_deleting_the_damaged_checkpoint_goes_on_from_the_one_before(finished, folder):
    folder.checkpoints()[-1].unlink()
    train(flow_run(), folder)
    assert contents(folder) == contents(finished)


def test_an_ema_snapshot_in_place_of_a_checkpoint_is_refused(folder):
    images, sigma_rel, snapshot = folder.ema_snapshots()[-1]
    for clock, said in (
        (10_000, f"holds images = {images}, and its name says 10000"),
        (images, f"holds sigma_rel = {sigma_rel}, and its name says none"),
    ):
        shutil.copy(snapshot, folder.checkpoint(clock))
        for attempt in (lambda: train(flow_run(), folder), lambda: load_trained(folder.path)):
            with pytest.raises(CheckpointError, match=said):
                attempt()
        folder.checkpoint(clock).unlink()


def test_the_checkpoint_of_another_recipe_is_refused(folder, tmp_path):
    other = flow_run(seed=1)
    target = create(tmp_path / "other", other)
    target.checkpoint(0).parent.mkdir()
    shutil.copy(folder.checkpoints()[-1], target.checkpoint(320))
    with pytest.raises(CheckpointError, match="belongs to another recipe") as error:
        train(other, target)
    assert str(target.checkpoint(320)) in str(error.value)


def test_another_teacher_is_refused_halfway(finished, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(finished.path, teacher)
    run = facm_run(teacher)
    folder = create(tmp_path / "student", run)
    with pytest.raises(Crash), before_step(crash_at(160)):
        train(run, folder)
    expected = load(folder.checkpoints()[-1]).meta["teacher"]["sha256"]
    shutil.rmtree(teacher)
    trained(teacher, flow_run(seed=3))
    with pytest.raises(CheckpointError, match="cannot change its teacher halfway") as error:
        train(run, folder)
    assert expected in str(error.value)
    shutil.rmtree(teacher)
    shutil.copytree(finished.path, teacher)
    assert train(run, folder).finished


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept(tmp_path, keep):
    from dataclasses import replace

    folder = trained(tmp_path / "run", flow_run(every=replace(EVERY, keep=keep)))
    assert [int(file.stem) for file in folder.checkpoints()] == [80, 160, 240, 320][-keep:]


def test_old_checkpoints_go_only_after_the_new_one_is_safe(tmp_path, monkeypatch):
    from dataclasses import replace

    run = flow_run(every=replace(EVERY, keep=1))
    folder = create(tmp_path / "run", run)

    def child():
        real = os.replace
        saved = []

        def then_die(source, target):
            saved.append(target)
            if "checkpoints" in str(target) and len(saved) > 6:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        monkeypatch.setattr("facm.core.files.os.replace", then_die)
        train(run, folder)

    assert in_child(child) == -signal.SIGKILL
    assert len(folder.checkpoints()) == 1
    assert isinstance(load(folder.checkpoints()[0]), Checkpoint)


def test_a_teacher_is_recorded_by_its_weights(finished, tmp_path):
    folder = trained(tmp_path / "student", facm_run(finished.path))
    record = load(folder.checkpoints()[-1]).meta["teacher"]
    assert record["sha256"] == digest(load_trained(finished.path).network.state_dict())
    assert record["identity"] == repr(FromRun(str(finished.path)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_runs(tmp_path_factory.mktemp("whole"))


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


CRASHES = [(kind, clock) for kind in KINDS for clock in ((0, 48, 80, 128, 304) if kind == "student" else (80, 128))]


@pytest.mark.parametrize(("kind", "clock"), CRASHES)
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


@pytest.mark.parametrize(("rank", "ranks", "expected"), [(0, 2, 1.0), (1, 2, 4.0), (0, 1, 2.5), (3, 4, 2.5)])
def test_a_rank_gets_its_own_part_of_the_logs_window_back(rank, ranks, expected):
    """After a change of the number of ranks, the average."""
    sums = {"window/loss": torch.tensor([1.0, 4.0]), "window/flow": torch.tensor(3.0)}
    stored = Stored(Path(), {}, "", {name: (v.shape, v.dtype) for name, v in sums.items()}, Checkpoint(sums, {}, ""))
    found = state._of_this_rank(stored, World(rank=rank, ranks=ranks), torch.device("cpu"))
    assert found == {"loss": expected, "flow": 3.0}


def test_frozen_and_unused_parameters_resume(tmp_path):
    """The label embedding's row of the null class gets no gradient without dropout, r's weights get none at all."""
    run = flow_run(network=MLP(width=16, depth=1, num_classes=50))
    expected = contents(trained(tmp_path / "whole", run))
    folder = create(tmp_path / "run", run)
    interrupt(run, folder, 128)
    train(run, folder)
    assert contents(folder) == expected


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


@pytest.mark.parametrize("count", [1, 4])
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
    unnamed = moment in ("before writing", "half-written", "before the rename") or syncing
    assert len(list(folder.path.rglob("*.partial"))) == unnamed
    for file in folder.checkpoints():
        load(file)  # whole, whatever happened
    train(run, folder)
    assert contents(folder) == expected
    assert not list(folder.path.rglob("*.partial"))


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


def test_a_changed_folder_of_images_is_refused_and_a_moved_one_is_not(tmp_path):
    from dataclasses import replace

    from PIL import Image

    from facm import FlowMatching, Labels
    from facm.data import ImageFolder
    from facm.networks import LightningDiT

    photos = tmp_path / "photos"
    for name, level in (("b", 40), ("c", 220)):
        (photos / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((2, 2), level + i, np.uint8)).save(photos / name / f"{i}.png")
    run = replace(
        flow_run(),
        data=ImageFolder("photos", size=2, channels=1),
        network=LightningDiT(2, 1, 1, 16, 1, 2, num_classes=2),
        objective=FlowMatching(Labels(2)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        folder = create(tmp_path / "run", run)
        with pytest.raises(Crash), before_step(crash_at(160)):
            train(run, folder)
        (photos / "c").rename(photos / "a")
        with pytest.raises(CheckpointError, match=r"was trained on data with the fingerprint \w{16}, and the data are"):
            train(run, folder)
        (photos / "a").rename(photos / "c")
        (tmp_path / "moved").mkdir()
        photos.rename(tmp_path / "moved" / "photos")
        patch.chdir(tmp_path / "moved")
        assert train(run, folder).finished

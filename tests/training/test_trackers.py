"""Trackers: what they get, that a run goes on under the same name, and that none of them ends a run."""

import dataclasses
import json
import sqlite3
import sys
from typing import ClassVar

import pytest

import facm
from facm.distributed.engine import Engine
from facm.distributed.process_group import ALONE, World
from facm.runs import log as logs
from facm.runs.folder import RunFolder
from facm.training.trackers import SINKS, trackers_of
from facm.training.trackers.base import Sink, grouped
from tests.training.run_parts import contents, flow_run


class Recorded(Sink):
    """A tracker that keeps what it gets, and fails at a method if it is told to."""

    package = "recorded"
    fails = ""
    seen: ClassVar[list] = []

    def _did(self, what, *arguments):
        if self.fails == what:
            raise OSError("no network")
        self.seen.append((what, *arguments))

    def open(self, folder, name, identity, images, config):
        self._did("open", name, identity, images, config["run"]["type"], config["ranks"])

    def log(self, numbers, images):
        self._did("log", images, dict(numbers))

    def picture(self, name, file, images):
        self._did("picture", name, file.name, images)

    def close(self):
        self._did("close")


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setitem(SINKS, "wandb", Recorded)
    monkeypatch.setattr(Recorded, "seen", [])
    return Recorded


def stop_at(images):
    def stop(record):
        if record["images"] >= images:
            raise facm.StopTraining

    return stop


def test_a_tracker_gets_what_the_log_has_and_goes_on_under_its_identity(recorded, tmp_path):
    out = tmp_path / "mine"
    facm.train(flow_run(), out, trackers=["wandb", "wandb"], callbacks=[stop_at(112)], quiet=True)
    facm.resume(out, trackers=["wandb"], quiet=True)
    opened = [each for each in recorded.seen if each[0] == "open"]
    identity = json.loads((out / "trackers.json").read_text())["wandb"]
    assert opened == [("open", "mine", identity, k, "facm:Run", 1) for k in (0, 112)]
    assert [each for each in recorded.seen if each[0] == "close"] == [("close",)] * 2
    records = {record["images"]: record for record in logs.read(RunFolder(out).log)}
    got = {each[1]: each[2] for each in recorded.seen if each[0] == "log"}
    assert got == {
        k: {grouped(name): value for name, value in record.items() if name != "images"} for k, record in records.items()
    }
    assert {"loss/loss", "loss/flow", "loss/flow_t1", "optimizer/lr", "optimizer/grad_norm", "optimizer/skipped"} <= {
        *got[112]
    }
    assert {"speed/images_per_s", "speed/seconds_left", "speed/data_wait", "memory/peak_memory_gb"} <= {*got[112]}


@pytest.mark.parametrize("fails", ["open", "log", "close"])
def test_a_tracker_that_fails_is_left_alone_after_one_warning(recorded, monkeypatch, tmp_path, capsys, fails):
    facm.train(flow_run(), tmp_path / "plain", quiet=True)
    monkeypatch.setattr(recorded, "fails", fails)
    facm.train(flow_run(), tmp_path / "run", trackers=["wandb"], quiet=True)
    warning = "tracker wandb: OSError: no network; training goes on without it, and log.jsonl has everything\n"
    assert capsys.readouterr().err == warning
    assert contents(RunFolder(tmp_path / "run")) == contents(RunFolder(tmp_path / "plain"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_not_there_is_one_warning(name, monkeypatch, tmp_path, capsys):
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    facm.train(flow_run(), tmp_path / "run", trackers=[name], quiet=True)
    warning = capsys.readouterr().err
    assert warning.startswith(f"tracker {name}: its package is not there (")
    assert f": pip install {name}; training goes on without it" in warning
    assert warning.count("\n") == 1


def test_other_ranks_have_none_and_another_name_is_refused():
    assert trackers_of(["tensorboard"], World(1, 2, 1), Engine()) == []
    assert len(trackers_of(["tensorboard", "tensorboard"], ALONE, Engine())) == 1
    with pytest.raises(ValueError, match="tracker = 'mlflow', expected one of tensorboard, wandb, trackio"):
        trackers_of(["mlflow"], ALONE, Engine())


@pytest.mark.slow
def test_tensorboard_read_back_has_each_record_once_also_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'facm[trackers]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from facm.recipes.digits import digits_teacher
    from facm.runs.config import Intervals

    every = Intervals(log=256, checkpoint=640, ema_snapshots=0)
    run = dataclasses.replace(digits_teacher(images=1280), every=every)
    out = tmp_path / "run"
    facm.train(run, out, trackers=["tensorboard"], callbacks=[stop_at(768)], quiet=True)
    facm.resume(out, trackers=["tensorboard"], quiet=True)
    read = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    read.Reload()
    for name in ("loss", "flow", "lr", "grad_norm", "images_per_s", "flow_t2"):
        found = {event.step: event.value for event in read.Scalars(grouped(name))}
        expected = {record["images"]: record[name] for record in logs.read(RunFolder(out).log)}
        assert len(read.Scalars(grouped(name))) == len(expected)
        assert found == pytest.approx(expected)
    assert [event.step for event in read.Images("samples")] == [640, 768, 1280]


@pytest.mark.slow
def test_wandb_offline_writes_a_run_of_that_identity(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'facm[trackers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    facm.train(flow_run(), out, trackers=["wandb"], quiet=True)
    identity = json.loads((out / "trackers.json").read_text())["wandb"]
    assert len(list(out.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))) == 1


@pytest.mark.slow
def test_trackio_keeps_a_run_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))  # read when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'facm[trackers]'")
    out = tmp_path / "run"
    facm.train(flow_run(), out, trackers=["trackio"], callbacks=[stop_at(112)], quiet=True)
    facm.resume(out, trackers=["trackio"], quiet=True)
    (file,) = (tmp_path / "kept").glob("*.db")
    rows = sqlite3.connect(file).execute("select distinct step, metrics from metrics order by step").fetchall()
    losses = {step: json.loads(metrics).get("loss/loss") for step, metrics in rows if b"loss/loss" in bytes(metrics)}
    assert losses == pytest.approx({record["images"]: record["loss"] for record in logs.read(RunFolder(out).log)})

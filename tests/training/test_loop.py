"""The training loop: what a session records, when it calls back, and what it leaves alone."""

import json
import random
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from facm.data import InMemory
from facm.distributed.engine import Engine
from facm.runs import log as logs
from facm.runs.folder import create
from facm.training.loop import train
from facm.training.trainer import Trainer
from tests.training.run_parts import (
    IMAGES,
    Crash,
    DrawsGlobally,
    before_step,
    contents,
    crash_at,
    flow_run,
    interrupt,
    log_of,
    trained,
    whole_runs,
)


@dataclass(frozen=True)
class Holed:
    """Data with one value that is not finite."""

    def open(self):
        x = np.zeros((50, 2), np.float32)
        x[37, 1] = np.inf
        return InMemory(x, np.zeros(50, np.int64), 2, name="Holed")


def test_data_that_are_not_finite_are_named_with_their_index(tmp_path):
    run = flow_run(data=Holed())
    with pytest.raises(ValueError, match="Holed: sample 37 has non-finite values"):
        train(run, create(tmp_path / "run", run))


def test_every_session_says_from_where_and_on_what_it_ran(tmp_path):
    run = flow_run()
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(128)):
        train(run, folder)
    train(run, folder)
    sessions = [json.loads(line) for line in folder.sessions.read_text().splitlines()]
    assert [line["images"] for line in sessions] == [0, 80]
    for line in sessions:
        assert line["device"].startswith("cpu (")
        assert line["threads"] == torch.get_num_threads()
        assert line["torch"] == torch.__version__
        assert line["date"].startswith("20")


def test_the_callback_sees_the_trainer_at_every_checkpoint(tmp_path):
    run, seen = flow_run(), []
    train(
        run,
        create(tmp_path / "run", run),
        on_checkpoint=lambda trainer: seen.append((type(trainer), trainer.state.images)),
    )
    assert seen == [(Trainer, 80), (Trainer, 160), (Trainer, 240), (Trainer, 320)]


def test_a_callback_that_a_kill_took_is_made_up_for(tmp_path):
    """As for the picture of a checkpoint: the process may end between the two."""
    run, seen, folder = flow_run(), [], create(tmp_path / "run", flow_run())

    def call_back(trainer):
        seen.append(trainer.state.images)
        if seen == [80, 160]:
            raise Crash

    with pytest.raises(Crash):
        train(run, folder, on_checkpoint=call_back)
    train(run, folder, on_checkpoint=call_back)
    assert seen == [80, 160, 160, 240, 320]


def test_checkpoints_that_a_kill_left_beyond_those_to_keep_are_removed(tmp_path, monkeypatch):
    """Also where the run had reached its end, and saves no more."""
    run, folder = flow_run(), create(tmp_path / "run", flow_run())
    with monkeypatch.context() as patched:
        patched.setattr("facm.training.state.remove", lambda path: None)
        assert train(run, folder).finished
    assert [int(file.stem) for file in folder.checkpoints()] == [80, 160, 240, 320]
    assert train(run, folder).finished
    assert [int(file.stem) for file in folder.checkpoints()] == [240, 320]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_runs(tmp_path_factory.mktemp("whole"))


def test_reading_ahead_changes_nothing(whole, tmp_path):
    run, expected = whole["student"]
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(112)):  # read while the step before it is computed
        train(run, folder, engine=Engine(prefetch="yes"))
    train(run, folder, engine=Engine(prefetch="yes"))
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


def test_the_log_says_what_memory_and_waiting_cost(tmp_path):
    for record in logs.read(trained(tmp_path / "run", flow_run()).log):
        assert record["images_per_s"] > 0
        assert 0 <= record["data_wait"] <= 1
        if "memory_gb" in record:  # Linux
            assert 0 < record["memory_gb"] <= record["peak_memory_gb"]
    assert {"images_per_s", "data_wait"} <= record.keys() & logs.TIMED
    assert sys.platform != "linux" or {"memory_gb", "peak_memory_gb"} <= record.keys() & logs.TIMED

"""What is not finite is skipped, counted, named and, in the end, an error; precision is what was asked for."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from facm.data import InMemory
from facm.runs import log as logs
from facm.runs.checkpoint import load
from facm.runs.config import Intervals
from facm.runs.folder import create
from facm.training.loop import train
from facm.training.precision import resolved_precision
from facm.training.trainer import LOOK_EVERY, NonFiniteError, Trainer
from tests.training.run_parts import (
    BATCH,
    EVERY,
    Crash,
    FailsAt,
    before_step,
    contents,
    crash_at,
    facm_run,
    flow_run,
    trained,
    weights,
)

EACH_STEP = Intervals(log=BATCH, checkpoint=BATCH, ema_snapshots=0, keep=100)


def failing(*clocks, how="nan", **changes):
    return flow_run(**({"objective": FailsAt(clocks, how), "every": EACH_STEP, "images": 160} | changes))


@pytest.mark.parametrize("how", ["nan", "gradient"])
def test_a_skipped_step_leaves_weights_and_optimiser_alone_and_is_counted(tmp_path, how):
    folder = trained(tmp_path / "run", failing(64, 80, how=how))
    before, first, second, after = (load(folder.checkpoint(images)) for images in (64, 80, 96, 112))
    for part in ("network", "optimizer"):
        for name, value in before.part(part).items():
            assert torch.equal(first.part(part)[name], value), name
            assert torch.equal(second.part(part)[name], value), name
        assert any(not torch.equal(after.part(part)[name], value) for name, value in before.part(part).items())
    assert [c.meta["skipped"] for c in (before, first, second, after)] == [0, 1, 2, 2]
    assert [c.meta["skipped_in_a_row"] for c in (before, first, second, after)] == [0, 1, 2, 0]
    assert [c.meta["steps"] for c in (before, first, second, after)] == [4, 5, 6, 7]
    assert [record["skipped"] for record in logs.read(folder.log)] == [0, 0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert all(bool(torch.isfinite(value).all()) for value in load(folder.checkpoints()[-1]).part("ema/0.05").values())


def test_the_outcome_counts_skipped_steps(tmp_path):
    run = failing(0, 64)
    assert train(run, create(tmp_path / "run", run)).skipped == 2


def test_too_many_in_a_row_stop_the_run_naming_clock_and_terms(tmp_path):
    run = failing(64, 80, 96, max_nonfinite=3)
    folder = create(tmp_path / "run", run)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* the last at 112 images") as error:
        train(run, folder)
    assert "non-finite terms: loss, flow." in str(error.value)
    assert int(folder.checkpoints()[-1].stem) == 96


def test_a_gradient_alone_that_is_not_finite_is_named(tmp_path):
    run = failing(0, 16, how="gradient", max_nonfinite=2)
    with pytest.raises(NonFiniteError, match="none, only the gradient"):
        train(run, create(tmp_path / "run", run))


def test_between_two_looks_nothing_is_lost(tmp_path):
    """Whether a gradient is finite stays on the device: a streak is noticed at the next look, whatever came after it,
    and before anything is saved; until then no step changes a weight."""
    run = failing(16, 32, 48, max_nonfinite=3, images=320, every=replace(EVERY, log=320, checkpoint=96))
    folder = create(tmp_path / "run", run)
    with pytest.raises(
        NonFiniteError, match=r"3 steps in a row .* the last at 64 images; non-finite terms: loss, flow"
    ):
        train(run, folder)
    assert not folder.checkpoints()
    assert LOOK_EVERY > 96 // BATCH


def test_a_good_step_resets_the_count(tmp_path):
    assert trained(tmp_path / "run", failing(16, 32, 64, 80, 112, 128, max_nonfinite=3)).checkpoints()


def test_the_count_in_a_row_survives_a_resume(tmp_path):
    run = failing(64, 80, 96, max_nonfinite=3)
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(96)):
        train(run, folder)
    with pytest.raises(NonFiniteError, match="the last at 112 images"):
        train(run, folder)


@pytest.mark.parametrize("clock", [64, 80, 96])
def test_resuming_around_skipped_steps_changes_nothing(tmp_path, clock):
    """The learning rate in the log too, which the optimiser alone would not remember."""
    run = failing(64, 80, every=replace(EVERY, log=16, checkpoint=16))
    expected = contents(trained(tmp_path / "whole", run))
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(clock)):
        train(run, folder)
    train(run, folder)
    assert contents(folder) == expected


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


# --- precision -------------------------------------------------------------------------------------------------------


def session(folder):
    (line,) = folder.sessions.read_text().splitlines()
    return json.loads(line)


def test_auto_is_fp32_on_a_cpu(tmp_path):
    folder, plain = (trained(tmp_path / p, flow_run(precision=p)) for p in ("auto", "fp32"))
    assert session(folder)["precision"] == "fp32"
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(folder).items())


@pytest.mark.parametrize("objective", ["flow", "student"])
def test_bf16_runs_on_a_cpu_where_it_is_asked_for(tmp_path, objective):
    """The forward pass is bf16: the weights stay float32, and the losses differ a little."""
    runs = [flow_run(precision=precision) for precision in ("fp32", "bf16")]
    if objective == "student":
        teacher = trained(tmp_path / "teacher", flow_run())
        runs = [facm_run(teacher.path, precision=run.precision) for run in runs]
    full, half = (trained(tmp_path / run.precision, run) for run in runs)
    assert session(half)["precision"] == "bf16"
    assert {value.dtype for value in weights(half).values()} == {torch.float32}
    losses = [[record["loss"] for record in logs.read(folder.log)] for folder in (full, half)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_resuming_in_bf16_changes_nothing(tmp_path):
    run = flow_run(precision="bf16")
    expected = contents(trained(tmp_path / "whole", run))
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(128)):
        train(run, folder)
    train(run, folder)
    assert contents(folder) == expected


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


def test_precision_resolves_by_device():
    assert resolved_precision(flow_run(), torch.device("cpu")) == "fp32"
    for precision in ("fp32", "bf16"):
        assert resolved_precision(flow_run(precision=precision), torch.device("cpu")) == precision


def test_the_callback_sees_the_trainer_at_every_checkpoint(tmp_path):
    run, seen = flow_run(), []
    train(
        run,
        create(tmp_path / "run", run),
        on_checkpoint=lambda trainer: seen.append((type(trainer), trainer.state.images)),
    )
    assert seen == [(Trainer, 80), (Trainer, 160), (Trainer, 240), (Trainer, 320)]

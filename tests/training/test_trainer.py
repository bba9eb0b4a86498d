"""A step that is not finite is skipped, counted, named and, in the end, an error."""

import dataclasses
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from facm.distributed import collectives
from facm.distributed.engine import Engine
from facm.distributed.process_group import ALONE, World
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.facm import FACM
from facm.runs import log as logs
from facm.runs.checkpoint import load
from facm.runs.config import Intervals
from facm.runs.folder import create
from facm.training.build import build
from facm.training.checks import check
from facm.training.finite import NonFiniteError
from facm.training.loop import train
from facm.training.trainer import LOOK_EVERY
from tests.training.run_parts import (
    BATCH,
    EVERY,
    Crash,
    FailsAt,
    Untrained,
    before_step,
    contents,
    crash_at,
    flow_run,
    trained,
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


# --- what a step waits for -------------------------------------------------------------------------------------------


def trainer_of(tmp_path, engine=None, scale=1.5):
    """A FACM student, before its first step."""
    engine, objective = engine or Engine(), FACM(Labels(2), TeacherVelocity(Guidance(scale)))
    run = flow_run(objective=objective, teacher=Untrained(MLP(width=16, depth=1, num_classes=3)))
    return build(check(run, engine), create(tmp_path / "run", run), engine, ALONE, torch.device("cpu"))


class Recorded(TorchDispatchMode):
    """The names of all operations, in every backward pass, too."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


READS = {"item", "_local_scalar_dense", "is_nonzero", "equal", "allclose"}
"""Operations that give the host a value, for which it waits until the device has computed it."""


def without_checks_of_values(monkeypatch):
    """These checks look at values on the CPU by design, and only there: on a GPU they look at shapes alone. Labels are
    looked at where they are on the CPU, too."""
    monkeypatch.setattr("facm.flow.paths.check_time", lambda *arguments: None)
    monkeypatch.setattr(Labels, "check", lambda *arguments: None)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, scale, accumulate):
    """On a CPU, where nothing waits, guidance inside an interval picks its samples (nonzero); elsewhere it does not."""
    trainer = trainer_of(tmp_path, Engine(accumulate=accumulate), scale)
    without_checks_of_values(monkeypatch)
    batches = [trainer.stream.at(images) for images in (0, BATCH)]
    for batch in batches:
        with Recorded() as recorded:
            trainer.step(batch)
        assert "mm" in recorded.names or "addmm" in recorded.names
        assert not READS & set(recorded.names), sorted(READS & set(recorded.names))
        assert recorded.names.count("nonzero") == (accumulate if scale > 1 else 0)
    monkeypatch.setattr("facm.flow.guidance.runs_behind", lambda t: True)
    with Recorded() as recorded:
        trainer.step(batches[0])
    assert not ({"nonzero"} | READS) & set(recorded.names)
    assert trainer.state.steps == 3


def test_a_look_and_a_record_do_wait(tmp_path):
    """What the test above looks for is there to be found."""
    trainer = trainer_of(tmp_path)
    trainer.step(trainer.stream.at(0))
    for read in (trainer.look, trainer.record):
        with Recorded() as recorded:
            read()
        assert READS & set(recorded.names)


def test_no_step_asks_the_other_ranks_for_anything(tmp_path, monkeypatch):
    """Two ranks, of which the other is not there: a step reduces gradients, which is the wrapper's, and no more."""
    trainer, calls = trainer_of(tmp_path), []
    trainer.world = World(rank=1, ranks=2)
    trainer.stream = dataclasses.replace(trainer.stream, rank=1, ranks=2)
    functions = {name for name, f in vars(collectives).items() if getattr(f, "__module__", "") == collectives.__name__}
    assert {"any_of", "gathered", "means", "meet"} <= functions
    for name, module in list(sys.modules.items()):
        for function in functions if name.partition(".")[0] == "facm" else ():
            if getattr(module, function, None) is getattr(collectives, function) and module is not collectives:
                monkeypatch.setattr(module, function, lambda *a, function=function, **o: calls.append(function) or [])
    trainer.step(trainer.stream.at(0))
    assert calls == []
    assert trainer.state.images == BATCH
    trainer.asked_to_stop([])
    assert calls == []  # not before the next look, either
    trainer.state.steps = LOOK_EVERY
    trainer.asked_to_stop([])
    assert calls == ["any_of"]

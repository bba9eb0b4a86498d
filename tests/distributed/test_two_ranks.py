"""Two processes are one, in few steps: one launch, in which every kind of mistake between ranks would show. The grid of
engines, objectives and derivatives is in test_training.py."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from facm.core.rng import derive
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from facm.runs.config import Intervals
from facm.runs.folder import RunFolder
from facm.runs.optim import AdamW
from facm.training.finite import NonFiniteError
from facm.training.trainer import Trainer
from tests.distributed.parallel_parts import (
    Awake,
    call,
    close_logs,
    contents,
    difference,
    moons_run,
    teacher_run,
    train_in,
)
from tests.distributed.test_failures import Different, Through, Unused
from tests.distributed.test_training import dropped, stopped_and_resumed, student, tangents_through_units

IMAGES = 64
ENGINES = {"ddp": Engine(parallel="ddp", accumulate=2), "fsdp": Engine(parallel="fsdp", accumulate=2)}
MISUSES: dict[str, dict[str, Any]] = {
    "through": {"objective": Through()},
    "unused": {"network": Unused()},
    "different": {"network": Different()},
    "odd": {"batch_size": 15},
}


def few_steps(root):
    """Four steps of a student, each of which the clip bounds; the log has three of them in one line."""
    every = Intervals(log=48, checkpoint=IMAGES, ema_snapshots=0)
    adam = AdamW(lr=1e-3, warmup_images=32, clip=0.05)
    return student(root, network=Awake(), images=IMAGES, every=every, optimizer=adam)


@contextmanager
def nan_on_the_second(world):
    """A weight of the second rank's replica is lost in the first step."""
    original = Trainer.step

    def step(trainer, batch):
        original(trainer, batch)
        if world.rank == 1:
            with torch.no_grad():
                trainer.state.network.get_parameter("x_embedder.proj.weight").view(-1)[0] = torch.nan

    Trainer.step = step
    try:
        yield
    finally:
        Trainer.step = original


def everything(root):
    """What a rank does; the answers that its folders do not show."""
    seeds, refused = [], {}
    with opened(Engine(timeout_s=300)) as world:
        for name, engine in ENGINES.items():
            train_in(f"{root}/{name}", few_steps(root), engine, world)
        train_in(
            f"{root}/whole", dropped(root), Engine(), world, on_checkpoint=lambda _: seeds.append(torch.initial_seed())
        )
        stopped_and_resumed(f"{root}/resumed", dropped(root), Engine(), world)
        for name, changes in MISUSES.items():
            try:
                train_in(f"{root}/{name}", moons_run(**{"images": 16, **changes}), Engine(), world)
            except (RuntimeError, ValueError) as error:
                refused[name] = str(error)
        try:
            with nan_on_the_second(world):
                train_in(f"{root}/nan", few_steps(root), Engine(), world)
        except NonFiniteError as error:
            refused["nan"] = str(error)
        return {"seeds": seeds, "refused": refused, "tangents": tangents_through_units(root, world)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    train_in(root / "teacher", teacher_run(images=32))
    train_in(root / "one", few_steps(root))
    return root


@pytest.fixture(scope="module")
def answers(root):
    return call(2, "tests.distributed.test_two_ranks", "everything", str(root))


@pytest.mark.parametrize("name", ENGINES)
def test_weights_averages_moments_and_log_are_those_of_one_process(root, answers, name):
    one, two = RunFolder(root / "one"), RunFolder(root / name)
    assert difference(one, two) < 1e-6
    close_logs(one, two, 1e-5)
    assert [path.is_dir() for path in two.checkpoints()] == [name.startswith("fsdp")]


def test_a_run_that_one_rank_stopped_goes_on_bit_for_bit(root, answers):
    whole, resumed = (contents(RunFolder(Path(root, name))) for name in ("whole", "resumed"))
    assert {name: resumed[name] for name in whole} == whole


def test_every_rank_has_dropout_masks_of_its_own(answers):
    """Drawn from generators that are seeded anew before each step, of which these are the last before a checkpoint."""
    for rank, answer in enumerate(answers):
        assert answer["seeds"] == [derive(0, 2, images, rank) for images in (32, 80)]


def test_tangents_pass_through_sharded_units(answers):
    assert max(max(answer["tangents"]) for answer in answers) < 1e-5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("through", "the gradient of parameter inward.weight is not synchronised: rank 0 and rank 1"),
        (
            "nan",
            "nothing was saved at 64 images, there is no checkpoint before: network/x_embedder.proj.weight on rank 1",
        ),
        ("unused", "parameter spare.weight has no gradient on rank 0, 1"),
        ("odd", "batch_size = 15 over 2 ranks"),
        ("different", "parameter inward.weight differs between rank 0 and rank 1"),
    ],
)
def test_misuse_is_named_on_every_rank(answers, name, expected):
    assert all(answer["refused"][name].startswith(expected) for answer in answers)

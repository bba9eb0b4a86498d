"""Only what is finite is kept, the last finite checkpoint is never let go, and what ceased to be finite is named."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from facm import cli
from facm.core.finite import non_finite
from facm.core.state_dict import CheckpointError
from facm.core.types import Batch
from facm.flow.conditions import Labels
from facm.flow.velocity import TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.facm import FACM
from facm.pretrained.trained import FromRun, Trained, export, load_trained
from facm.runs.checkpoint import load, save
from facm.runs.config import Run
from facm.runs.folder import RunFolder, create
from facm.training.finite import NonFiniteError
from facm.training.loop import train
from facm.training.trainer import Trainer
from tests.training.run_parts import EVERY, FailsAt, Untrained, flow_run, trained

Plant = Callable[[Trainer], Tensor]


@dataclass(frozen=True)
class WithExtras:
    """An MLP with a parameter that is frozen, and two buffers: a mask of infinities, which is as it should be."""

    def build(self) -> nn.Module:
        network = MLP(width=16, depth=1, num_classes=3).build()
        network.register_parameter("frozen", nn.Parameter(torch.ones(3), requires_grad=False))
        network.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        network.register_buffer("statistics", torch.ones(2))
        return network


def weight(trainer: Trainer) -> Tensor:
    return trainer.state.network.get_parameter("outward.weight")


def moment(name: str) -> Plant:
    return lambda trainer: trainer.state.optimizer.state[weight(trainer)][name]


PLACES: dict[str, tuple[Plant, str]] = {
    "weight": (weight, "network/outward.weight"),
    "frozen parameter": (lambda trainer: trainer.state.network.get_parameter("frozen"), "network/frozen"),
    "buffer": (lambda trainer: trainer.state.network.get_buffer("statistics"), "network/statistics"),
    "average": (lambda trainer: trainer.state.ema.averages[0.2]["outward.weight"], "ema/0.2/outward.weight"),
    "first moment": (moment("exp_avg"), "optimizer/"),
    "second moment": (moment("exp_avg_sq"), "optimizer/"),
}


@contextmanager
def after_step(clock: int, act: Callable[[Trainer], Any]) -> Iterator[None]:
    """``act(trainer)`` happens when the step that ends at ``clock`` is done."""
    original = Trainer.step

    def step(self: Trainer, batch: Batch) -> None:
        original(self, batch)
        if self.state.images == clock:
            act(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", step)
        yield


def planted(plant: Plant, value: float, clock: int) -> Any:
    def act(trainer: Trainer) -> None:
        with torch.no_grad():
            plant(trainer).view(-1)[0] = value

    return after_step(clock, act)


def with_extras(**changes: Any) -> Run:
    every = dataclasses.replace(EVERY, ema_snapshots=0, keep=1)
    return flow_run(network=WithExtras(), every=every, **changes)


def kept_is_finite(folder: RunFolder, clock: int) -> None:
    """The only checkpoint is that of ``clock``, and a network to compute with."""
    assert [int(file.stem) for file in folder.checkpoints()] == [clock]
    tensors = {name: x for name, x in load(folder.checkpoints()[0]).tensors.items() if not name.endswith("mask")}
    assert non_finite(tensors) == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_and_the_last_finite_checkpoint_kept(
    place: str, value: float, tmp_path: Path
) -> None:
    plant, name = PLACES[place]
    folder = create(tmp_path / "run", with_extras())
    if place == "buffer" and math.isinf(value):
        with planted(plant, value, 160):
            assert train(with_extras(), folder).finished  # as a mask may be
        return
    with pytest.raises(NonFiniteError, match=name) as error, planted(plant, value, 160):
        train(with_extras(), folder)
    assert "nothing was saved at 160 images, the newest checkpoint is 000000000080.safetensors" in str(error.value)
    kept_is_finite(folder, 80)
    assert train(with_extras(), folder).finished  # it goes on from there
    kept_is_finite(folder, 320)


def test_a_run_that_ends_without_finite_weights_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = create(tmp_path / "run", with_extras())
    with pytest.raises(SystemExit) as ended, planted(weight, math.nan, 320):
        cli.main(["resume", str(folder.path)])
    said = capsys.readouterr()
    assert ended.value.code != 0
    assert "done" not in said.out
    assert "nothing was saved at 320 images, the newest checkpoint is 000000000240.safetensors" in said.err
    kept_is_finite(folder, 240)


def test_no_snapshot_is_kept_of_averages_that_are_not_finite(tmp_path: Path) -> None:
    folder = create(tmp_path / "run", flow_run())
    said = r"no averages were kept at 128 images: ema/0\.2/outward\.weight"
    with pytest.raises(NonFiniteError, match=said), planted(PLACES["average"][0], math.nan, 112):
        train(flow_run(), folder)
    assert {images for images, _, _ in folder.ema_snapshots()} == {64}


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path: Path) -> None:
    """Earlier versions wrote such checkpoints."""
    folder = trained(tmp_path / "run", flow_run())
    before, newest = folder.checkpoints()
    saved = load(newest)
    saved.tensors["network/outward.weight"][0] = math.nan
    save(newest, saved.tensors, saved.meta)
    said = f"{newest} cannot be gone on from: network/outward.weight hold NaN or infinity; the one before is {before}"
    with pytest.raises(CheckpointError, match=said):
        train(flow_run(), folder)
    with pytest.raises(CheckpointError, match=r"outward\.weight hold NaN or infinity"):
        load_trained(folder.path, raw=True)
    assert load_trained(folder.path).which == "EMA 0.05"  # which is finite


# --- where it began -------------------------------------------------------------------------------------------------


class Overflowing(nn.Module):
    """Its weights are finite, and what it returns is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(width=8, depth=1, num_classes=3).build()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.inner(x, t, cond) * torch.inf


@dataclass(frozen=True)
class OverflowingConfig:
    def build(self) -> nn.Module:
        return Overflowing()


@dataclass(frozen=True)
class Spoilt:
    """A network one of whose weights is not finite, as a teacher or to start from."""

    def load(self) -> nn.Module:
        network = MLP(width=16, depth=1, num_classes=3).build()
        with torch.no_grad():
            network.get_parameter("inward.bias")[2] = math.nan
        return network


def student(**changes: Any) -> Run:
    parts = {
        "objective": FACM(Labels(2), TeacherVelocity()),
        "teacher": Untrained(MLP(width=16, depth=1, num_classes=3)),
    }
    return flow_run(**(parts | {"max_nonfinite": 3} | changes))


def test_a_teacher_whose_answers_are_not_finite_is_named(tmp_path: Path) -> None:
    run = student(teacher=Untrained(OverflowingConfig()))
    with pytest.raises(
        NonFiniteError, match=r": the teacher \(Overflowing\) returns NaN or infinity for finite inputs"
    ):
        train(run, create(tmp_path / "run", run))


def test_a_network_whose_answers_are_not_finite_is_named(tmp_path: Path) -> None:
    run = flow_run(network=OverflowingConfig(), max_nonfinite=3)
    with pytest.raises(NonFiniteError, match=r": the network \(Overflowing\) returns NaN or infinity for finite in"):
        train(run, create(tmp_path / "run", run))


def test_a_weight_that_ceased_to_be_finite_is_named_where_the_steps_fail_first(tmp_path: Path) -> None:
    run = with_extras(max_nonfinite=3)
    run = dataclasses.replace(run, every=dataclasses.replace(run.every, checkpoint=320))
    said = r": the network holds NaN or infinity in outward\.weight\."
    with pytest.raises(NonFiniteError, match=said), planted(weight, math.nan, 32):
        train(run, create(tmp_path / "run", run))


@pytest.mark.parametrize("role", ["teacher", "initial"])
def test_a_network_that_is_not_finite_neither_teaches_nor_begins(role: str, tmp_path: Path) -> None:
    run = student(**{role: Spoilt()})
    with pytest.raises(CheckpointError, match=rf"{role} = Spoilt.*: inward\.bias hold NaN or infinity"):
        train(run, create(tmp_path / "run", run))


def test_a_gradient_alone_has_no_other_cause(tmp_path: Path) -> None:
    run = flow_run(objective=FailsAt((0, 16), "gradient"), max_nonfinite=2)
    with pytest.raises(NonFiniteError, match=r"none, only the gradient\. Checkpoints"):
        train(run, create(tmp_path / "run", run))


# --- what leaves a run ----------------------------------------------------------------------------------------------


def test_a_network_that_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    source = trained(tmp_path / "run", flow_run())
    good = load_trained(source.path)
    assert FromRun(str(source.path)).load() is not None

    def spoilt(trained: Trained) -> Trained:
        with torch.no_grad():
            trained.network.get_parameter("outward.weight")[0, 0] = math.inf
        return trained

    with pytest.raises(CheckpointError, match=r"x\.safetensors is no network to compute with: outward\.weight"):
        export(spoilt(good), tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_what_is_finite() -> None:
    tensors = {
        "good": torch.ones(3),
        "whole numbers": torch.tensor([2**62]),
        "empty": torch.zeros(0),
        "half": torch.tensor([1.0, math.inf], dtype=torch.bfloat16),
        "eight bits": torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn),
        "double": torch.tensor(math.nan, dtype=torch.float64),
        "mask": torch.tensor([0.0, -math.inf]),
        "spoilt mask": torch.tensor([0.0, math.nan]),
    }
    assert non_finite(tensors, {"mask", "spoilt mask"}) == ["half", "eight bits", "double", "spoilt mask"]
    assert non_finite({}) == []

"""Mistakes that only show once the parts of a run are together."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import facm
from facm import FACM, DataVelocity, FlowMatching, FromRun, Guidance, Labels, Run, TeacherVelocity
from facm.data import Digits, Ring
from facm.derivative import WholeNetwork
from facm.distributed.engine import Engine
from facm.flow.time_conditioning import AuxiliaryTime
from facm.networks.mlp import MLP
from facm.runs.folder import create
from facm.training.checks import check
from facm.training.loop import train
from tests.training.run_parts import facm_run, flow_run

NETWORK, DATA, CONDITION = MLP(width=16, depth=1, num_classes=8), Ring(n=64), Labels(8)


@pytest.fixture
def teacher(tmp_path):
    def trained(label_dropout):
        run = Run(NETWORK, DATA, FlowMatching(CONDITION, label_dropout=label_dropout), images=32, batch_size=16)
        train(run, create(tmp_path / "teacher", run))
        return FromRun(str(tmp_path / "teacher"))

    return trained


def student(teacher, scale):
    return Run(NETWORK, DATA, FACM(CONDITION, TeacherVelocity(Guidance(scale))), 32, teacher=teacher, initial=teacher)


def test_guiding_with_a_teacher_that_never_saw_its_null_condition_is_refused(teacher):
    unguidable = teacher(0.0)
    check(student(unguidable, 1.0))
    with pytest.raises(ValueError, match=r"guidance scale = 1\.5, and the teacher .* label_dropout 0"):
        check(student(unguidable, 1.5))


def test_guiding_with_a_teacher_that_saw_its_null_condition_is_fine(teacher):
    check(student(teacher(0.1), 1.5))


@dataclass(frozen=True)
class Pair:
    def build(self):
        class Network(torch.nn.Linear):
            def forward(self, x, t, cond=None):
                return super().forward(x), t

        return Network(2, 2)


def test_a_network_that_returns_a_tuple_is_named(tmp_path):
    run = Run(Pair(), DATA, FlowMatching(CONDITION), images=32)
    with pytest.raises(TypeError, match="the network returned tuple, expected one tensor"):
        train(run, create(tmp_path / "run", run))


class Table(nn.Module):
    """A network with a row for each of eight classes and none for the null."""

    def __init__(self):
        super().__init__()
        self.rows, self.out = nn.Embedding(8, 2), nn.Linear(2, 2)

    def forward(self, x, t, cond=None):
        return self.out(x + self.rows(cond))


@dataclass(frozen=True)
class TableConfig:
    def build(self):
        return Table()


def test_a_table_without_a_row_for_the_null_is_named(tmp_path):
    run = Run(TableConfig(), DATA, FlowMatching(CONDITION, label_dropout=1.0), images=32)
    expected = r"index out of range .* \(Table\) .* labels 0 \.\. 8, 8 being the null, expected tables of 9 rows"
    with pytest.raises(ValueError, match=expected):
        train(run, create(tmp_path / "run", run))


@dataclass(frozen=True)
class Lossy:
    """Data whose object lacks two of the names that training asks for."""

    def open(self):
        return SimpleNamespace(shape=(2,), num_classes=2, __len__=lambda self: 3)


@dataclass(frozen=True)
class Bright:
    """Images in [0, 255], as floats."""

    def open(self):
        return facm.InMemory(np.full((3, 1, 4, 4), 200.0, np.float32), name="Bright")


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'facm\[demo\]'"):
        Digits().open()


def test_a_student_without_its_teachers_folder_is_refused(tmp_path):
    run = facm_run(tmp_path / "gone")
    folder = create(tmp_path / "student", run)
    with pytest.raises(RuntimeError, match="gone is not a run folder"):
        train(run, folder)


@dataclass(frozen=True)
class Empty:
    def open(self):
        return facm.InMemory(np.zeros((0, 2), np.float32), name="Nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": FlowMatching(Labels(1))}, r"expected Labels\(2\)"),
        ({"objective": FlowMatching(facm.Unconditional(), label_dropout=0.0)}, "the batch has conditions"),
        ({"objective": FlowMatching(Labels(2), AuxiliaryTime())}, "auxiliary_time=True"),
        ({"objective": FACM(Labels(2), TeacherVelocity(Guidance(1.0)))}, "teacher = None"),
        ({"seed": -1}, "seed = -1"),
        ({"data": Empty()}, "Nothing is empty"),
        ({"data": Lossy()}, "Lossy made an object of type SimpleNamespace without .*flip, .*read, expected a Dataset"),
        ({"data": Bright()}, r"Bright: sample 0 is of another scale: x_1 runs over \[200, 200\]"),
    ],
)
def test_parts_that_do_not_fit_are_an_error_before_training(change, message):
    with pytest.raises(ValueError, match=message):
        check(flow_run(**change))


OPENED: list[str] = []


@dataclass(frozen=True)
class Counted:
    """A data set that notes when it is opened."""

    def open(self):
        OPENED.append("opened")
        return DATA.open()


def test_a_run_that_was_checked_is_trained_on_the_data_that_were_opened_then(tmp_path):
    OPENED.clear()
    run = Run(NETWORK, Counted(), FlowMatching(CONDITION), images=32, batch_size=16)
    checked = check(run)
    assert check(checked) is checked
    assert train(checked, create(tmp_path / "run", run)).finished
    assert OPENED == ["opened"]


def test_training_alone_opens_the_data_once(tmp_path):
    OPENED.clear()
    run = Run(NETWORK, Counted(), FlowMatching(CONDITION), images=32, batch_size=16)
    assert train(run, create(tmp_path / "run", run)).finished
    assert OPENED == ["opened"]


def test_a_checked_run_is_still_held_against_engine_and_ranks():
    checked = check(Run(NETWORK, DATA, FlowMatching(CONDITION), images=32, batch_size=16))
    with pytest.raises(ValueError, match="batch_size = 16 over 3 ranks"):
        check(checked, ranks=3)
    naive = check(Run(NETWORK, DATA, FACM(CONDITION, DataVelocity(), derivative=WholeNetwork()), images=32))
    with pytest.raises(ValueError, match=r"engine.checkpointing = True with derivative = WholeNetwork"):
        check(naive, Engine(checkpointing=True))


class Normed(torch.nn.Module):
    def __init__(self, norm, frozen):
        super().__init__()
        self.norm, self.frozen = norm, frozen

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self.norm.eval()
        return self

    def forward(self, x, t, cond=None):
        return self.norm(x)


@dataclass(frozen=True)
class WithNorm:
    kind: str
    frozen: bool = False

    def build(self):
        tracked = {"track_running_stats": True} if "Instance" in self.kind else {}
        arguments = (1, 2) if self.kind == "GroupNorm" else (2,)
        return Normed(getattr(torch.nn, self.kind)(*arguments, **tracked), self.frozen)


@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm2d", "SyncBatchNorm", "InstanceNorm1d"])
def test_statistics_that_every_pass_of_a_step_would_train_are_announced(kind):
    objective = FACM(CONDITION, DataVelocity(Guidance(1.5)), label_dropout=0.1)
    with pytest.warns(UserWarning, match=rf"norm \({kind}\) in train mode .* Use GroupNorm, or keep .* eval mode"):
        check(Run(WithNorm(kind), DATA, objective, 32))


@pytest.mark.parametrize(
    ("network", "objective"),
    [
        (WithNorm("BatchNorm1d", frozen=True), FACM(CONDITION, DataVelocity(), label_dropout=0.1)),
        (WithNorm("GroupNorm"), FACM(CONDITION, DataVelocity(), label_dropout=0.1)),
        (WithNorm("BatchNorm1d"), FlowMatching(CONDITION)),  # one pass a step
    ],
)
def test_other_norms_are_not_announced(network, objective, recwarn):
    check(Run(network, DATA, objective, 32))
    assert not [w for w in recwarn if "train mode" in str(w.message)]

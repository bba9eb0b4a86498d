"""Mistakes that only show once the parts of a run are together."""

import sys
from dataclasses import dataclass

import pytest
import torch

from facm import FACM, FlowMatching, FromRun, Guidance, Labels, Run, TeacherVelocity
from facm.data import Digits, Ring
from facm.networks.mlp import MLP
from facm.runs.folder import create
from facm.training.checks import check
from facm.training.loop import train

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


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'facm\[demo\]'"):
        Digits().open()

"""From a configuration to a trainer: the weights that a run starts from."""

import dataclasses

import pytest
import torch

import facm
from facm.distributed.engine import Engine
from facm.distributed.process_group import ALONE
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.velocity import TeacherVelocity
from facm.networks.lightning_dit import LightningDiT
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.runs.config import Intervals
from facm.runs.folder import create
from facm.training.build import build
from facm.training.checks import check
from facm.training.loop import train
from tests.training.run_parts import facm_run, flow_run, trained, weights

DIT = LightningDiT(input_size=8, patch_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=10)


def test_a_student_with_a_second_time_starts_from_a_teacher_without(tmp_path):
    digits = {"data": facm.data.Digits(), "images": 48, "every": Intervals(log=16, checkpoint=48, ema_snapshots=0)}
    teacher = trained(tmp_path / "teacher", flow_run(network=DIT, objective=FlowMatching(Labels(10)), **digits))
    objective = FACM(Labels(10), TeacherVelocity(Guidance(1.0)), AuxiliaryTime())
    network = dataclasses.replace(DIT, auxiliary_time=True)
    folder = trained(tmp_path / "student", facm_run(teacher.path, network=network, objective=objective, **digits))
    assert any(name.startswith("r_embedder") for name in weights(folder))
    deeper = facm_run(teacher.path, network=dataclasses.replace(network, depth=2), objective=objective, **digits)
    with pytest.raises(RuntimeError, match=r"initial = FromRun.*missing: blocks\.1") as error:
        train(deeper, create(tmp_path / "deeper", deeper))
    assert "r_embedder" not in str(error.value)


def test_a_teacher_is_frozen_and_asked_without_dropout(tmp_path):
    teacher = trained(tmp_path / "teacher", flow_run())
    run, engine = facm_run(teacher.path), Engine()
    trainer = build(check(run, engine), create(tmp_path / "student", run), engine, ALONE, torch.device("cpu"))
    modules = list(trainer.teacher.modules())
    assert modules
    assert not any(module.training for module in modules)
    assert not any(p.requires_grad for p in trainer.teacher.parameters())

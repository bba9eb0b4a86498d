"""The work of a step, against what its passes are known to take."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from facm import FACM, Engine, FlowMatching, Labels
from facm.training.memory_plan import work
from facm.training.memory_plan.rehearsal import built
from facm.training.memory_plan.work import Work
from tests.training.memory_plan.test_predict import TINY, distillation


def forward_flops(network):
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        built(network)(torch.empty(1, 4, 8, 8), torch.empty(1), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()


def test_flow_matching_takes_three_forwards_and_checkpointing_one_more():
    run = dataclasses.replace(distillation(TINY), objective=FlowMatching(Labels(10)), teacher=None)
    one = forward_flops(TINY) * run.batch_size
    assert work(run).flops / one == pytest.approx(3, abs=0.05)
    assert work(run, Engine(checkpointing=True)).flops / one == pytest.approx(4, abs=0.1)
    assert work(run).steps == 3


def test_a_step_of_facm_takes_ten_forwards():
    """Teacher, guided: 2; anchor: 3; shortcut: 3 and the tangent's 2, less the parts that no gradient needs."""
    run = distillation(TINY, objective=FACM(Labels(10)))
    assert work(run).flops / (forward_flops(TINY) * run.batch_size) == pytest.approx(10, abs=1.0)


def test_hours_are_work_over_speed():
    assert Work(flops=10**15, steps=3600).hours(gpus=2, peak=1e15, utilisation=0.5) == pytest.approx(1.0)

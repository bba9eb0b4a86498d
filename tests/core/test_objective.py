"""What training asks of an objective, and the answers that hold where a user's own says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from facm import FACM, FlowMatching
from facm.core.objective import (
    Condition,
    NetworkInterface,
    Objective,
    VelocityTarget,
    as_objective,
    guidance_scale,
    needs_teacher,
)
from facm.core.types import Batch, Loss
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.velocity import DataVelocity, TeacherVelocity
from tests.core.core_parts import generator

BATCH = Batch(torch.ones(4, 2))
DEFAULTS = {
    "condition": None,
    "velocity": None,
    "task": None,
    "derivative": None,
    "label_dropout": None,
    "learns_shortcut": False,
    "learns_jumps": False,
    "learns_flow": True,
    "draws_for_whole_step": False,
    "group_size": 1,
}


def mean(network, batch, rng, teacher=None):
    return Loss(network(batch.x_1).mean() + (0 if teacher is None else teacher) + torch.rand((), generator=rng))


class Own:
    """A user's objective with two attributes, a clock and a limit of its own."""

    condition, learns_shortcut = Labels(3), True

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any = None) -> Loss:
        return Loss(self.factor * network(batch.x_1).mean())

    def at(self, images_seen: int) -> Own:
        return Own(images_seen / 10)

    def check_nfe(self, nfe: int) -> None:
        if nfe > 2:
            raise ValueError("nfe = too many")


def attributes(objective):
    return {name: getattr(objective, name) for name in DEFAULTS}


def test_a_bare_function_is_an_objective_with_the_defaults():
    objective = as_objective(mean)
    assert isinstance(objective, Objective)
    assert attributes(objective) == DEFAULTS
    assert objective.at(100) is objective
    assert repr(objective) == repr(mean)
    expected = 3 + 10 + torch.rand((), generator=generator(2))
    assert torch.equal(objective(lambda x: 3 * x, BATCH, generator(2), 10).total, expected)
    objective.check_nfe(1000)
    objective.check_network(None)


def test_what_an_object_says_holds_and_the_defaults_where_it_says_nothing():
    objective = as_objective(Own())
    assert attributes(objective) == DEFAULTS | {"condition": Labels(3), "learns_shortcut": True}
    assert objective(lambda x: 3 * x, BATCH, generator()).total == 3
    with pytest.raises(ValueError, match="too many"):
        objective.check_nfe(3)
    later = objective.at(20)
    assert isinstance(later, Objective)
    assert later(lambda x: 3 * x, BATCH, generator()).total == 6


def test_an_objective_is_not_wrapped_twice():
    objective = FlowMatching(Labels(3))
    assert as_objective(objective) is objective
    wrapped = as_objective(mean)
    assert as_objective(wrapped) is wrapped


@pytest.mark.parametrize("value", [3, None, "FACM", Labels(3)])
def test_what_cannot_be_called_is_no_objective(value):
    with pytest.raises(ValueError, match=r"objective = .*, expected a facm\.Objective, or a function of"):
        as_objective(value)


def test_the_loss_is_one_term_unless_the_objective_has_its_own():
    (term,) = as_objective(mean).loss_terms(lambda x: x, BATCH, generator(5))
    assert torch.equal(term().total, mean(lambda x: x, BATCH, generator(5)).total)

    class InTwo(Own):
        def loss_terms(self, network, batch, rng, teacher=None):
            return (lambda: Loss(torch.tensor(1.0))), (lambda: Loss(torch.tensor(2.0)))

    assert [term().total.item() for term in as_objective(InTwo()).loss_terms(None, BATCH, generator())] == [1, 2]


def test_a_condition_without_a_default_stays_required():
    with pytest.raises(TypeError, match="condition"):
        FACM()

    @dataclass(frozen=True)
    class Mine(Objective):
        condition: Condition
        weight: float = 1.0

    with pytest.raises(TypeError, match="condition"):
        Mine()
    assert Mine(Labels(2)).condition == Labels(2)

    class Silent(Objective):
        pass

    @dataclass(frozen=True)
    class Default(Objective):
        condition: Condition | None = None

    assert Silent().condition is Default().condition is None


def test_an_objective_without_a_loss_names_itself():
    class Silent(Objective):
        pass

    with pytest.raises(NotImplementedError, match="Silent"):
        Silent()(None, BATCH, generator())


def test_the_interface_is_what_sampling_needs_to_know():
    own = as_objective(Own())
    interface = own.interface
    assert (interface.condition, interface.task) == (Labels(3), None)
    assert (interface.learns_shortcut, interface.learns_jumps, interface.learns_flow) == (True, False, True)
    with pytest.raises(ValueError, match="too many"):
        interface.check_nfe(3)
    student = FACM(Labels(3), task=AuxiliaryTime()).interface
    assert (student.condition, student.task, student.learns_shortcut) == (Labels(3), AuxiliaryTime(), True)
    plain = NetworkInterface(None)
    assert (plain.task, plain.learns_shortcut, plain.learns_jumps, plain.learns_flow) == (None, False, False, True)
    plain.check_nfe(1000)


@pytest.mark.parametrize(
    ("velocity", "scale", "asks"),
    [
        (TeacherVelocity(Guidance(1.5)), 1.5, True),
        (DataVelocity(Guidance(2.0)), 2.0, False),
        (VelocityTarget(), 1.0, False),
        (None, 1.0, False),
        (lambda *arguments: None, 1.0, False),
    ],
)
def test_guidance_and_teacher_of_a_velocity(velocity, scale, asks):
    assert guidance_scale(velocity) == scale
    assert needs_teacher(velocity) is asks

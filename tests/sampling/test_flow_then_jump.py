"""Sampling on both heads of a student: by hand, exact where both fields are, and of Heun's order."""

import math
from itertools import pairwise

import pytest
import torch

from facm.derivative import OpLevel
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.phases import Phases
from facm.flow.velocity import TeacherVelocity
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.objectives.scm import SCM
from facm.sampling.generate import noise, sample
from facm.sampling.methods import Consistency, FlowThenJump
from facm.sampling.solvers import consistency, flow_then_jump, flow_then_jump_times, heun
from tests.sampling.test_samplers import CLASSES, M, S, average, fields, instantaneous, randn, source

__all__ = ["source"]  # a fixture


def test_steps_by_hand():
    """v = x, which Heun's method multiplies by 1 + h + h^2 / 2 a step; F = 10 everywhere."""
    asked = []

    def v(x, t):
        asked.append(("v", x.item(), t.item()))
        return x

    def F(x, t):
        asked.append(("F", x.item(), t.item()))
        return 10 + 0 * x

    x = flow_then_jump(v, F, torch.ones(1, 1, dtype=torch.float64), [0.0, 0.5])
    assert asked == [("v", 1.0, 0.0), ("v", 1.5, 0.5), ("F", 1.625, 0.5)]
    assert x.item() == 1.625 + 0.5 * 10


def test_the_first_jump_is_renoised_to_where_the_flow_begins():
    """1 -> 11 by the jump; 0.25 of it and 0.75 of the noise 4 are 5.75; there the flow stands still."""
    drawn = []

    def z(i):
        drawn.append(i)
        return torch.full((1, 1), 4.0)

    x = flow_then_jump(lambda x, t: 0 * x, lambda x, t: 10 + 0 * x, torch.ones(1, 1), [0.25, 0.5], z)
    assert x.item() == 5.75 + 0.5 * 10
    assert drawn == [1]
    with pytest.raises(ValueError, match=r"times = \[0.25, 0.5\] begin after 0 and need fresh_noise"):
        flow_then_jump(instantaneous, average, randn(2, 1), [0.25, 0.5])


def test_one_evaluation_is_a_jump_and_two_are_consistency_sampling():
    x_0, z = randn(64, 2), randn(64, 2, seed=1)
    one = flow_then_jump(instantaneous, average, x_0, flow_then_jump_times(1))
    assert torch.equal(one, consistency(average, x_0, [0.0]))
    (middle,) = flow_then_jump_times(2)
    two = flow_then_jump(instantaneous, average, x_0, [middle], lambda i: z)
    assert torch.equal(two, consistency(average, x_0, [0.0, middle], lambda i: z))


def test_on_exact_fields_the_error_is_that_of_the_flow_and_of_second_order():
    x_0 = randn(256, 2)
    times = [[0.8 * i / k for i in range(k + 1)] for k in (10, 20, 40)]
    errors = [(flow_then_jump(instantaneous, average, x_0, t) - (M + S * x_0)).abs().mean().item() for t in times]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([2, 2], abs=0.15)
    # The jump has no error: that is what is won over following the flow to the end with as many steps.
    assert errors[0] < 0.7 * (heun(instantaneous, x_0, [i / 10 for i in range(10)]) - (M + S * x_0)).abs().mean().item()


def test_samples_after_a_first_jump_are_of_the_data():
    x_0, times = randn(200_000, 1), [0.1 + 0.5 * i / 20 for i in range(21)]
    x = flow_then_jump(instantaneous, average, x_0, times, lambda i: randn(200_000, 1, seed=i))
    assert x.mean().item() == pytest.approx(M, abs=0.004)
    assert x.std().item() == pytest.approx(S, abs=0.003)
    assert abs(torch.corrcoef(torch.cat([x, x_0], 1).T)[0, 1].item()) < 0.1  # little of the first noise is left


def test_schedules():
    assert flow_then_jump_times(1) == [0.0]
    assert flow_then_jump_times(2) == [0.5]
    assert flow_then_jump_times(3) == pytest.approx([0.0, 0.6])
    assert flow_then_jump_times(4) == pytest.approx([0.1, 0.6])
    assert flow_then_jump_times(7) == pytest.approx([0.0, 0.8 / 3, 1.6 / 3, 0.8])
    assert flow_then_jump_times(8) == pytest.approx([0.1, 0.1 + 0.7 / 3, 0.1 + 1.4 / 3, 0.8])
    for nfe in range(1, 60):
        FlowThenJump(nfe, tuple(flow_then_jump_times(nfe)))  # which its own check allows


def test_it_asks_both_heads_and_says_what_it_spends(source):
    indices, cond = [3, 5, 6], torch.tensor([0, 2, 1])
    x_0, z = noise(4, indices, 0, (2,)), [noise(4, indices, i, (2,)) for i in range(2)]
    shortcut, anchor, _ = fields(source, cond)
    for method in (FlowThenJump(), FlowThenJump(6), FlowThenJump(5, (0.0, 0.1, 0.3)), FlowThenJump(2, (0.4,))):
        want = flow_then_jump(anchor, shortcut, x_0, method.schedule(), z.__getitem__)
        torch.testing.assert_close(sample(source, method, indices, cond, 4), want)
    for nfe in range(1, 9):
        spent = []
        handle = source.network.register_forward_hook(lambda *_, spent=spent: spent.append(1))
        sample(source, FlowThenJump(nfe), indices, cond)
        handle.remove()
        assert len(spent) == nfe


@pytest.mark.parametrize("guidance", [Guidance(1.0), Guidance(2.0)])
@pytest.mark.parametrize("nfe", [3, 4])
def test_a_sample_does_not_depend_on_its_batch(source, nfe, guidance):
    cond = torch.tensor([0, 1, 2, 0, 1])
    whole = sample(source, FlowThenJump(nfe), range(5), cond, 7, guidance)
    parts = [sample(source, FlowThenJump(nfe), i, cond[i], 7, guidance) for i in ([4, 0], [1], [3, 2])]
    torch.testing.assert_close(torch.cat(parts), whole[[4, 0, 1, 3, 2]])


def test_it_needs_both_fields():
    facm = FACM(Labels(CLASSES), TeacherVelocity(Guidance(1.0)))
    FlowThenJump().check(facm.interface)
    for objective in (FlowMatching(Labels(CLASSES)), SCM(Labels(CLASSES), derivative=OpLevel())):
        with pytest.raises(ValueError, match="needs a flow and average velocities to its end"):
            FlowThenJump().check(objective.interface)
    phased = FACM(Labels(CLASSES), TeacherVelocity(Guidance(1.0)), phases=Phases((0.0, 0.5, 1.0)))
    for method in (FlowThenJump(), Consistency(3)):
        with pytest.raises(ValueError, match=r"has learned to jump to the ends of its phases.*expected Phased\(3, "):
            method.check(phased.interface)

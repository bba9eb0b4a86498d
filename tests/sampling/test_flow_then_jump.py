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
from facm.sampling.moves import follow
from facm.sampling.solvers import flow_then_jump_times, heun
from tests.sampling.test_samplers import CLASSES, M, S, average, fields, instantaneous, randn, source

__all__ = ["source"]  # a fixture


def test_steps_by_hand(source):
    """A Heun step along the anchor's flow to 0.5, a jump, noise up to 0.75, and a jump to data."""
    indices, cond, dt = [3, 5, 6], torch.tensor([0, 2, 1]), torch.float64
    shortcut, anchor, _ = fields(source, cond)

    def at(field, x, t):
        return field(x.float(), torch.full((3,), t)).to(dt)

    x_0, z = noise(4, indices, 0, (2,)).to(dt), noise(4, indices, 1, (2,)).to(dt)
    euler = x_0 + 0.5 * at(anchor, x_0, 0.0)
    x = x_0 + 0.25 * (at(anchor, x_0, 0.0) + at(anchor, euler, 0.5))
    three = x + 0.5 * at(shortcut, x, 0.5)
    torch.testing.assert_close(sample(source, FlowThenJump(3, (0.0, 0.5)), indices, cond, 4), three.float())
    x = 0.75 * three + 0.25 * z
    four = x + 0.25 * at(shortcut, x, 0.75)
    torch.testing.assert_close(sample(source, FlowThenJump(4, (0.0, 0.5, 0.75)), indices, cond, 4), four.float())


def test_one_evaluation_is_a_jump_and_two_are_consistency_sampling(source):
    indices, cond = [3, 5, 6], torch.tensor([0, 2, 1])
    for nfe in (1, 2):
        both = [sample(source, method, indices, cond, 4) for method in (FlowThenJump(nfe), Consistency(nfe))]
        assert torch.equal(*both)


@pytest.mark.parametrize("nfe", [5, 6])
def test_on_exact_fields_the_error_is_that_of_the_flow_and_of_second_order(nfe):
    """The flow up to 0.8 in 10, 20 and 40 steps; jumps have no error, whichever noise they begin with."""
    x_0, z, errors = randn(256, 2), randn(256, 2, seed=1), []
    for k in (10, 20, 40):
        method = FlowThenJump(2 * k + 2 - nfe % 2, tuple(0.8 * i / k for i in range(k + 1)) + (0.9,) * (nfe % 2 == 0))
        x = follow(instantaneous, average, x_0, method.schedule(), method.moves, lambda i: z)
        exact = M + S * x_0
        if nfe % 2 == 0:  # renoised data of the flow through (M + S x_0, z) at 0.9
            x_t = 0.9 * exact + 0.1 * z
            exact = x_t + 0.1 * average(x_t, torch.full((256,), 0.9, dtype=x_t.dtype))
        errors.append((x - exact).abs().mean().item())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([2, 2], abs=0.15)
    if nfe % 2:  # that is what is won over following the flow to the end with as many steps
        assert errors[0] < 0.7 * (heun(instantaneous, x_0, [i / 10 for i in range(10)]) - exact).abs().mean().item()


@pytest.mark.parametrize("nfe", [3, 4, 5, 6, 7, 8])
def test_samples_are_of_the_data(nfe):
    """On exact fields of narrow Gaussian data, with the ordinary times: the mean, and the deviation up to the error of
    few long steps."""
    x_0, method = randn(200_000, 1), FlowThenJump(nfe)
    noises = [randn(200_000, 1, seed=i) for i in range(2)]
    x = follow(instantaneous, average, x_0, method.schedule(), method.moves, noises.__getitem__)
    assert x.mean().item() == pytest.approx(M, abs=0.03)
    assert x.std().item() == pytest.approx(S, rel=0.12)


def test_schedules():
    assert flow_then_jump_times(1) == [0.0]
    assert flow_then_jump_times(2) == [0.0, 0.5]
    assert flow_then_jump_times(3) == [0.0, 0.55]
    assert flow_then_jump_times(4) == pytest.approx([0.0, 0.55, 0.865])
    assert flow_then_jump_times(6) == pytest.approx([0.0, 0.5, 0.75, 0.925])
    assert flow_then_jump_times(7) == pytest.approx([0.0, 0.525, 0.75, 0.875])
    assert flow_then_jump_times(8) == pytest.approx([0.0, 0.525, 0.75, 0.875, 0.9625])
    assert flow_then_jump_times(11) == pytest.approx([15 / 16 * t for t in (0, 3 / 7, 2 / 3, 9 / 11, 12 / 13, 1)])
    for nfe in range(1, 60):
        FlowThenJump(nfe, tuple(flow_then_jump_times(nfe)))  # which its own check allows


def test_it_asks_both_heads_and_says_what_it_spends(source):
    indices, cond = [3, 5, 6], torch.tensor([0, 2, 1])
    x_0, z = noise(4, indices, 0, (2,)), [noise(4, indices, i, (2,)) for i in range(2)]
    shortcut, anchor, _ = fields(source, cond)
    for method in (FlowThenJump(), FlowThenJump(6), FlowThenJump(5, (0.0, 0.1, 0.3)), FlowThenJump(2, (0.0, 0.4))):
        want = follow(anchor, shortcut, x_0, method.schedule(), method.moves, z.__getitem__)
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

"""FACM, and what plain continuous consistency shares with it: zero at the exact solution, and equal in value and
gradient to the paper's equations written out slowly."""

import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from facm.core.types import Batch
from facm.derivative import FiniteDifference, NoGraph, OpLevel, WholeNetwork
from facm.flow.conditions import Labels, Unconditional
from facm.flow.distances import L2, L2Cosine, NormL2
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.flow.times import ArctanLogNormal, Uniform
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.flow.weighting import Cosine, OneMinusPower
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.objectives.imm import IMM
from facm.objectives.shortcut_model import ShortcutModel
from tests.core.core_parts import generator, randn
from tests.flow.flow_parts import SIZES
from tests.objectives.facm_parts import CASES, DISTILLATION, TABLE_4, TASKS, TEACHER, Exact, average, compare, mlp
from tests.objectives.objective_parts import (
    CLASSES,
    DIM,
    DROPPED,
    EXACT,
    LABELS,
    TIMES,
    Halved,
    M,
    S,
    check_parts,
    gradients,
    instantaneous,
)


def test_average_velocity_identity_of_the_closed_form():
    """Eq. 5: F = v + (1 - t) dF/dt along the flow; checks the closed form that the other tests lean on."""
    x, t = randn(256, DIM), torch.rand(256, generator=generator(1), dtype=torch.float64) * 0.98
    F, dF = NoGraph()(average, (x, t), (instantaneous(x, t), torch.ones_like(t)))
    torch.testing.assert_close(F, instantaneous(x, t) + (1 - t)[:, None] * dF, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("derivative", [NoGraph(), WholeNetwork(), FiniteDifference(1e-4)])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objective", [FACM, ContinuousCM])
def test_exact_solution_has_zero_loss(objective, task, derivative):
    network = Exact(isinstance(task, AuxiliaryTime))
    loss = objective(Unconditional(), TeacherVelocity(NO_GUIDANCE), task, Uniform(0.01, 0.95), derivative=derivative)
    out = loss(network, Batch(M + S * randn(512, DIM)), generator(), instantaneous)
    assert out.total.item() < (1e-12 if not isinstance(derivative, FiniteDifference) else 1e-8)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objective", [FACM, ContinuousCM])
def test_any_other_network_has_a_loss(objective, task):
    class Off(Exact):
        def forward(self, x, t, cond=None, r=None):
            return 1.01 * super().forward(x, t, cond, r)

    loss = objective(Unconditional(), TeacherVelocity(NO_GUIDANCE), task, Uniform(0.01, 0.95))
    assert loss(Off(task == AuxiliaryTime()), Batch(M + S * randn(512, DIM)), generator(), instantaneous).total > 1e-4


@pytest.mark.parametrize("task", TASKS, ids=["expanded", "auxiliary"])
@pytest.mark.parametrize("case", [name for name, o in CASES.items() if o.get("anchored", True)])
def test_value_and_gradient_match_the_equations_written_slowly(case, task):
    terms = compare(CASES[case] | {"task": task})
    assert 0.05 < (terms.g.abs() > 1).double().mean() < 0.95  # the clamp acts on some elements, and not on others


@pytest.mark.parametrize(
    "case", [name for name, o in CASES.items() if o["velocity"] == "data" and o.get("anchored", True)]
)
def test_a_sample_whose_label_was_dropped_is_not_guided(case):
    compare(CASES[case] | {"task": ExpandedInterval()}, DROPPED)


@pytest.mark.parametrize("anchored", [True])
@pytest.mark.parametrize(("alpha", "slow_alpha", "beta", "slow_beta"), TABLE_4)
def test_every_kind_of_weighting_in_table_4(alpha, slow_alpha, beta, slow_beta, anchored):
    o = {"alpha": alpha, "beta": beta, "slow_alpha": slow_alpha, "slow_beta": slow_beta, "anchored": anchored}
    compare(DISTILLATION | {"task": ExpandedInterval()} | o)


@pytest.mark.parametrize("anchored", [True])
@pytest.mark.parametrize("clamp", [None, 0.3, 2.0])
def test_clamp_off_and_at_other_bounds(clamp, anchored):
    compare(DISTILLATION | {"task": ExpandedInterval(), "clamp": clamp, "anchored": anchored})


def test_distances_can_be_exchanged():
    network, teacher, x_1, x_0 = mlp(1), mlp(2), randn(16, DIM, seed=3), randn(16, DIM, seed=4)
    o = FACM(Labels(CLASSES), anchor=L2(), shortcut=NormL2(1.0, 0.1)).evaluate(
        network, Interpolant.between(x_0, x_1, TIMES, LABELS), teacher
    )
    e = (o.F_CM - o.v_tar).square().mean(1)
    torch.testing.assert_close(o.L_norm, e / (e + 0.1))
    torch.testing.assert_close(o.L_FM, (o.F_FM - o.v).square().mean(1))


def test_defaults_are_the_papers():
    for objective in (FACM(Labels(3)), ContinuousCM(Labels(3))):
        assert objective.velocity == TeacherVelocity(Guidance(1.75, 0.125, 1.0))
        assert objective.task == ExpandedInterval()
        assert objective.time == ArctanLogNormal(-0.8, 1.6)
        assert objective.shortcut == NormL2(0.5, 1e-3)
        assert (objective.alpha, objective.beta) == (OneMinusPower(0.5), Cosine())
        assert (objective.clamp, objective.label_dropout) == (1.0, 0.0)
    assert FACM(Labels(3)).anchor == L2Cosine()
    flow = FlowMatching(Labels(3))
    assert (flow.time, flow.distance, flow.p_flow_condition, flow.label_dropout) == (Uniform(), L2Cosine(), 0.5, 0.1)


@pytest.mark.parametrize("derivative", [NoGraph(), WholeNetwork(), FiniteDifference()])
@pytest.mark.parametrize(
    "velocity", [TeacherVelocity(), DataVelocity(Guidance()), DataVelocity(Guidance(), both_online=True)]
)
@pytest.mark.parametrize("objective", [FACM, ContinuousCM])
def test_only_the_predictions_carry_a_graph(objective, velocity, derivative):
    network, teacher = mlp(1), mlp(2)
    loss = objective(Labels(CLASSES), velocity, derivative=derivative, label_dropout=0.1)
    terms = loss.evaluate(network, Interpolant.between(randn(16, DIM, seed=1), randn(16, DIM), TIMES, LABELS), teacher)
    frozen = [terms.x_t, terms.v, terms.dF, terms.v_bar, terms.g, terms.v_tar]
    assert not any(tensor.requires_grad for tensor in frozen)
    assert terms.F_CM.requires_grad
    out = terms.loss()
    assert not any(value.requires_grad for value in out.terms.values())
    assert all(value.shape == (16,) for value in out.terms.values())
    out.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("objective", [FACM, ContinuousCM])
def test_a_call_draws_noise_times_and_dropped_labels_from_the_generator(objective):
    network, batch = mlp(1), Batch(randn(64, DIM), torch.arange(64) % CLASSES)
    loss = objective(Labels(CLASSES), DataVelocity(Guidance()), time=Uniform(0.1, 0.9), label_dropout=0.4)
    called = loss(network, batch, generator(5))
    rng = generator(5)
    x_0 = torch.randn(64, DIM, generator=rng, dtype=torch.float64)
    t = loss.time.sample(64, rng).double()
    dropped = torch.rand(64, generator=rng) < 0.4
    cond = Labels(CLASSES).drop(batch.cond, dropped)
    assert 5 < dropped.sum() < 50
    expected = loss.evaluate(network, Interpolant.between(x_0, batch.x_1, t, cond, dropped)).loss()
    assert torch.equal(called.total, expected.total)
    undropped = objective(Labels(CLASSES), DataVelocity(), time=Uniform(0.1, 0.9))
    expected = undropped.evaluate(network, Interpolant.between(x_0, batch.x_1, t, batch.cond)).loss()
    assert torch.equal(undropped(network, batch, generator(5)).total, expected.total)


def test_terms_for_the_log():
    terms = FACM(Labels(CLASSES)).evaluate(
        mlp(1), Interpolant.between(randn(16, DIM, seed=1), 2 * randn(16, DIM), TIMES, LABELS), mlp(2)
    )
    loss = terms.loss()
    torch.testing.assert_close(loss.total, (loss.terms["anchor"] + loss.terms["shortcut"]).mean())
    torch.testing.assert_close(loss.terms["anchor"], terms.L_FM.detach())
    torch.testing.assert_close(loss.terms["tangent_rms"], terms.dF.norm(dim=1) / math.sqrt(DIM))
    torch.testing.assert_close(loss.terms["clamped"], (terms.g.abs() > 1).float().mean(1))
    plain = ContinuousCM(Labels(CLASSES))
    plain = plain.evaluate(
        mlp(1), Interpolant.between(randn(16, DIM, seed=1), 2 * randn(16, DIM), TIMES, LABELS), mlp(2)
    ).loss()
    torch.testing.assert_close(plain.terms["shortcut"], loss.terms["shortcut"])
    torch.testing.assert_close(plain.terms["tangent_rms"], loss.terms["tangent_rms"])
    torch.testing.assert_close(plain.total, loss.terms["shortcut"].mean())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("velocity", [TeacherVelocity(), DataVelocity(Guidance()), DataVelocity(Guidance(3.0, 0.2))])
@pytest.mark.parametrize("derivative", [OpLevel(), NoGraph(), WholeNetwork()], ids=str)
def test_the_parts_of_facms_loss_and_of_its_gradient_add_up_to_the_whole(derivative, velocity, dropout):
    network, teacher = mlp(1, dropout=dropout).train(), mlp(2)
    objective = FACM(Labels(CLASSES), velocity, label_dropout=0.4, derivative=derivative)
    batch = Batch(2 * randn(16, DIM), LABELS)
    torch.manual_seed(7)
    whole = objective(network, batch, generator(5), teacher)
    expected = gradients(network, whole.total)
    torch.manual_seed(7)
    total, terms = 0.0, {}
    pending = objective.loss_terms(network, batch, generator(5), teacher)
    assert len(pending) == 2
    for term in pending:
        part = term()
        part.total.backward()
        torch.rand(3)  # what else may draw in between
        total, terms = total + part.total.detach(), terms | part.terms
    torch.testing.assert_close(total, whole.total, **EXACT)
    torch.testing.assert_close(tuple(p.grad for p in network.parameters()), expected, **EXACT)
    torch.testing.assert_close(terms, dict(whole.terms), rtol=0, atol=0)


def test_the_anchors_backward_pass_ends_before_the_shortcut_is_asked():
    """Its activations are gone by then: the peak of one of both, not the sum."""
    network, events, activations = mlp(1), [], []

    class Recorded(torch.nn.Module):
        def forward(self, x, t, cond):
            events.append("anchor" if t.min() > 1 else "shortcut")
            assert all(activation.expired() for activation in activations)
            return network(x, t, cond)

    def keep(module, args, out):
        if events[-1] == "anchor":
            activations.append(StorageWeakRef(out.untyped_storage()))

    network.layers[0][0].register_forward_hook(keep)
    network.inward.weight.register_post_accumulate_grad_hook(lambda _: events.append("backward"))
    objective = FACM(Labels(CLASSES), TeacherVelocity())
    terms = objective.loss_terms(Recorded(), Batch(randn(16, DIM), LABELS), generator(5), TEACHER)
    assert events == []
    anchor = terms[0]()
    assert events == ["anchor"]
    assert not any(activation.expired() for activation in activations)
    anchor.total.backward()
    assert events == ["anchor", "backward"]
    shortcut = terms[1]()
    assert events == ["anchor", "backward", "shortcut"]
    shortcut.total.backward()
    assert events[-1] == "backward"
    assert len(activations) == 1


@pytest.mark.parametrize("objective", [FACM, ContinuousCM])
@pytest.mark.parametrize("velocity", [TeacherVelocity(), TeacherVelocity(NO_GUIDANCE), DataVelocity(Guidance())])
def test_half_precision_answers_are_lifted_before_anything_is_computed_with_them(objective, velocity):
    network, teacher = Halved(mlp(1).float()), Halved(mlp(2).float())
    loss = objective(Labels(CLASSES), velocity, label_dropout=0.1)
    x_1, x_0, t = (x.float() for x in (randn(16, DIM), randn(16, DIM, seed=1), TIMES))
    terms = loss.evaluate(network, Interpolant.between(x_0, x_1, t, LABELS), teacher)
    assert all(value.dtype == torch.float32 for value in vars(terms).values())
    if isinstance(velocity, TeacherVelocity) and velocity.guidance.scale > 1:
        v_c, v_u = (teacher(terms.x_t, t, y).float() for y in (LABELS, torch.full_like(LABELS, CLASSES)))
        active = (t >= 0.125)[:, None]
        torch.testing.assert_close(terms.v, torch.where(active, v_u + 1.75 * (v_c - v_u), v_c).detach())


def test_anchor_shortcut_and_guidance_of_one_step_see_one_dropout_mask():
    """At t = 1 both heads are asked the same question, so with one mask they give the same answer."""
    network, t = mlp(1, dropout=0.3).train(), torch.ones(16, dtype=torch.float64)
    null = torch.full((16,), CLASSES)
    loss = FACM(Labels(CLASSES), DataVelocity(Guidance(2.0)), label_dropout=0.1)
    x_1, x_0 = randn(16, DIM), randn(16, DIM, seed=1)
    first = loss.evaluate(network, Interpolant.between(x_0, x_1, t, null))
    assert torch.equal(first.F_FM, first.F_CM)
    torch.testing.assert_close(first.v, first.F_FM.detach() + 2.0 * (x_1 - x_0 - first.F_FM.detach()))
    assert not torch.allclose(
        first.F_FM, loss.evaluate(network, Interpolant.between(x_0, x_1, t, null)).F_FM
    )  # the next step has another
    plain = ContinuousCM(Labels(CLASSES), DataVelocity(Guidance(2.0), at_shortcut=True), label_dropout=0.1)
    terms = plain.evaluate(network, Interpolant.between(x_0, x_1, t, null))
    torch.testing.assert_close(terms.v, terms.F_CM.detach() + 2.0 * (x_1 - x_0 - terms.F_CM.detach()))


def evaluate(objective=None, network=None, t=TIMES, cond=LABELS, teacher=None, x_0=None, **kwargs):
    objective = objective or FACM(Labels(CLASSES))
    x_0 = randn(16, DIM, seed=1) if x_0 is None else x_0
    point = Interpolant.between(x_0, randn(16, DIM), t, cond, **kwargs)
    return objective.evaluate(network or mlp(1), point, teacher)


BAD = {
    "no teacher": (r"TeacherVelocity\(\) needs a teacher", {}),
    "one time for all": (r"t has shape \(1,\), expected \(16,\)", {"t": torch.full((1,), 0.5), "teacher": TEACHER}),
    "time with an axis too many": (r"t has shape \(16, 1\)", {"t": TIMES[:, None], "teacher": TEACHER}),
    "time above 1": (r"t runs over .*\[0, 1\]", {"t": TIMES + 0.5, "teacher": TEACHER}),
    "time below 0": (r"t runs over \[-0.07", {"t": TIMES - 0.1, "teacher": TEACHER}),
    "label out of range": (r"labels run over \[0, 4\]", {"cond": LABELS * 2, "teacher": TEACHER}),
    "no labels": ("no labels", {"cond": None, "teacher": TEACHER}),
    "noise of another shape": (r"x_0 \(16, 1\)", {"x_0": randn(16, 1), "teacher": TEACHER}),
}


@pytest.mark.parametrize("objective", [FACM(Labels(CLASSES)), ContinuousCM(Labels(CLASSES))])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_argument_is_an_error_that_names_it(case, objective):
    named, arguments = BAD[case]
    with pytest.raises(ValueError, match=named):
        evaluate(objective, **arguments)


@pytest.mark.parametrize("objective", [FACM, ContinuousCM, FlowMatching])
def test_a_task_the_network_cannot_be_told_is_an_error(objective):
    loss = objective(Labels(CLASSES), task=AuxiliaryTime())
    with pytest.raises(ValueError, match=r"AuxiliaryTime\(\) passes a second time r"):
        loss(mlp(1), Batch(randn(16, DIM), LABELS), generator(), TEACHER)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FACM(Labels(3), clamp=0.0), "clamp = 0.0"),
        (lambda: FACM(Labels(3), label_dropout=1.0), "label_dropout = 1.0"),
        (
            lambda: FACM(Labels(3), DataVelocity(Guidance(1.75))),
            "label_dropout = 0.0, expected a positive one",
        ),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_options_at_their_bounds_are_accepted():
    FACM(Labels(3), TeacherVelocity(), label_dropout=0.0, clamp=None)
    FACM(Labels(3), DataVelocity(NO_GUIDANCE), label_dropout=0.0)
    FlowMatching(Labels(3), p_flow_condition=0.0, label_dropout=1.0)
    FlowMatching(Labels(3), p_flow_condition=1.0, label_dropout=0.0)


@pytest.mark.parametrize("objective", [FACM, ContinuousCM])
@pytest.mark.parametrize("velocity", [TeacherVelocity(), DataVelocity(Guidance())])
def test_unconditional_data_cannot_be_guided(objective, velocity):
    with pytest.raises(ValueError, match=r"condition = Unconditional\(\), expected labels .* guidance scale = 1.75"):
        objective(Unconditional(), velocity)
    for make in (FlowMatching, objective):
        with pytest.raises(ValueError, match=r"label_dropout = 0\.2, expected 0 with condition"):
            make(Unconditional(), label_dropout=0.2)


@pytest.mark.parametrize("objective", [FlowMatching, IMM, ShortcutModel])
def test_an_objective_without_labels_drops_none_by_default(objective):
    """As written, without a word about labels."""
    assert objective(Unconditional()) == objective(Unconditional(), label_dropout=0.0)
    assert objective(Labels(3)).label_dropout == 0.1


def test_objectives_say_whether_they_learn_the_shortcut():
    learnt = [getattr(objective, "learns_shortcut", False) for objective in (FACM, ContinuousCM, FlowMatching)]
    assert learnt == [True, True, False]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    "objective",
    [
        FACM(Labels(CLASSES), DataVelocity(Guidance(1.75, 0.3, 0.8)), label_dropout=0.4),
        FACM(Labels(CLASSES), TeacherVelocity(Guidance(1.75, 0.3, 0.8))),
    ],
    ids=lambda o: f"{type(o).__name__}-{o.label_dropout}",
)
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(objective, sizes):
    check_parts(objective, mlp(1), mlp(2), sizes)

"""FACM, plain continuous consistency and flow matching: zero at the exact solution, and equal in value and gradient to
the paper's equations written out slowly, sample by sample, with finite differences and no shared code."""

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
from facm.flow.weighting import Cosine, One, OneMinusPower
from facm.networks.mlp import MLP
from facm.objectives.consistency_target import shortcut_target
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching

CLASSES = 3
DIM = 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def mlp(seed, auxiliary_time=False, dropout=0.0):
    torch.manual_seed(seed)
    network = MLP(DIM, 16, 2, CLASSES, dropout, auxiliary_time).build().double()
    for p in network.parameters():
        p.data *= 1.5  # some |g| exceed 1, so that the clamp matters
    return network


TEACHER = mlp(2)


# The exact solution for Gaussian data, x_1 ~ N(M, S^2)

M, S = 1.5, 0.4


def spread(t):
    return torch.sqrt((1 - t) ** 2 + (t * S) ** 2)


def instantaneous(x, t):
    """E[x_1 - x_0 | x_t = x]."""
    t = t[:, None]
    return M + (t * S**2 - (1 - t)) / spread(t) ** 2 * (x - t * M)


def average(x, t):
    """(x_1 - x_t) / (1 - t) along the exact flow, x_1 = M + S (x_t - t M) / spread_t."""
    t = t[:, None]
    return (M + S * (x - t * M) / spread(t) - x) / (1 - t)


class Exact(torch.nn.Module):
    """What FACM trains for, under both conditioning strategies."""

    def __init__(self, auxiliary_time):
        super().__init__()
        self.auxiliary_time = auxiliary_time

    def forward(self, x, t, cond=None, r=None):
        inside = t.clamp(max=1 - 1e-9)
        if self.auxiliary_time:
            return torch.where((r == 1)[:, None], average(x, inside), instantaneous(x, t))
        return torch.where((t > 1)[:, None], instantaneous(x, 2 - t), average(x, inside))


def exact_teacher(x, t, cond=None):
    return instantaneous(x, t)


TASKS = [ExpandedInterval(), AuxiliaryTime()]


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
    out = loss(network, Batch(M + S * randn(512, DIM)), generator(), exact_teacher)
    assert out.total.item() < (1e-12 if not isinstance(derivative, FiniteDifference) else 1e-8)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objective", [FACM, ContinuousCM])
def test_any_other_network_has_a_loss(objective, task):
    class Off(Exact):
        def forward(self, x, t, cond=None, r=None):
            return 1.01 * super().forward(x, t, cond, r)

    loss = objective(Unconditional(), TeacherVelocity(NO_GUIDANCE), task, Uniform(0.01, 0.95))
    assert loss(Off(task == AuxiliaryTime()), Batch(M + S * randn(512, DIM)), generator(), exact_teacher).total > 1e-4


# The equations, written slowly


def ask(network, task, head, x, s, y):
    """F of one sample (1, DIM) at the head "shortcut", "anchor" or "native"; s is a number."""
    if isinstance(task, AuxiliaryTime):
        r = {"shortcut": torch.ones(1), "anchor": torch.full((1,), s), "native": torch.full((1,), s)}[head]
        return network(x, torch.full((1,), s, dtype=x.dtype), y, r.to(x.dtype))
    return network(x, torch.full((1,), {"shortcut": s, "anchor": 2 - s, "native": s}[head], dtype=x.dtype), y)


def slow_velocity(o, network, teacher, x_1, x_0, x_t, s, y, dropped):
    """Line 4 of Algorithm 1 for one sample; ``o`` are the options of this test."""
    w, low, high = o.get("w", 1.75), o.get("low", 0.125), o.get("high", 0.8)
    inside = low <= s <= high
    null = torch.tensor([CLASSES])
    if o["velocity"] == "teacher":
        head = "anchor" if o.get("at_anchor") else "native"
        v_c, v_u = (ask(teacher, o["task"], head, x_t, s, label) for label in (y, null))
        return v_u + w * (v_c - v_u) if inside else v_c
    v = x_1 - x_0
    head = "shortcut" if o.get("at_shortcut") else "anchor"
    if w == 1 or dropped:
        return v
    if o.get("both_online"):
        difference = ask(network, o["task"], head, x_t, s, y) - ask(network, o["task"], head, x_t, s, null)
        return v + w * difference if inside else v
    if o.get("extrapolate_outside") and not inside:
        return v + (w - 1) * (v - ask(network, o["task"], head, x_t, s, y))
    return v + (w - 1) * (v - ask(network, o["task"], head, x_t, s, null)) if inside else v


def slow_loss(o, network, teacher, x_1, x_0, t, y, dropped, h=1e-5):
    losses = []
    for i in range(len(x_1)):
        a, b, s, label = x_1[i : i + 1], x_0[i : i + 1], t[i].item(), y[i : i + 1]
        x = s * a + (1 - s) * b
        with torch.no_grad():
            v = slow_velocity(o, network, teacher, a, b, x, s, label, bool(dropped is not None and dropped[i]))
            ahead = ask(network, o["task"], "shortcut", x + h * v, s + h, label)
            behind = ask(network, o["task"], "shortcut", x - h * v, s - h, label)
            frozen = ask(network, o["task"], "shortcut", x, s, label)
            g = frozen - (v + (1 - s) * (ahead - behind) / (2 * h))
            if o.get("clamp", 1.0) is not None:
                g = torch.clip(g, -o.get("clamp", 1.0), o.get("clamp", 1.0))
            target = frozen - o.get("slow_alpha", lambda s: 1 - math.sqrt(s))(s) * g
            weight = 1 / (((frozen - target) ** 2).mean().item() + 1e-3) ** 0.5
        F_CM = ask(network, o["task"], "shortcut", x, s, label)
        loss = o.get("slow_beta", lambda s: math.cos(math.pi * s / 2))(s) * weight * ((F_CM - target) ** 2).mean()
        if o.get("anchored", True):
            F_FM = ask(network, o["task"], "anchor", x, s, label)
            loss = loss + ((F_FM - v) ** 2).mean() + 1 - (F_FM * v).sum() / F_FM.norm() / v.norm()
        losses.append(loss)
    return torch.stack(losses).mean()


def components(o):
    guidance = Guidance(o.get("w", 1.75), o.get("low", 0.125), o.get("high", 0.8))
    if o["velocity"] == "teacher":
        velocity = TeacherVelocity(guidance, at_anchor=o.get("at_anchor", False))
    else:
        switches = {k: o[k] for k in ("at_shortcut", "both_online", "extrapolate_outside") if k in o}
        velocity = DataVelocity(guidance, **switches)
    weights = {k: o[k] for k in ("alpha", "beta", "clamp") if k in o}
    return {"velocity": velocity, "task": o["task"], "label_dropout": 0.1, **weights}


# t = 0.125 and t = 0.8 are the ends of the guidance interval, both inside it
TIMES = torch.tensor([0.03, 0.124, 0.125, 0.31, 0.57, 0.8, 0.801, 0.985] * 2, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1, 2, 0, 1, 2, 0, 1, 2])
DROPPED = torch.tensor([False, False, True, True, False, False, False, True] * 2)


def compare(o, dropped=None):
    auxiliary_time = isinstance(o["task"], AuxiliaryTime)
    network, teacher = mlp(1, auxiliary_time), mlp(2, auxiliary_time)
    x_1, x_0 = 2 * randn(16, DIM, seed=3), randn(16, DIM, seed=4)
    y = LABELS if dropped is None else torch.where(dropped, CLASSES, LABELS)
    objective = (FACM if o.get("anchored", True) else ContinuousCM)(Labels(CLASSES), **components(o))
    terms = objective.evaluate(network, Interpolant.between(x_0, x_1, TIMES, y, dropped), teacher)
    loss, slow = terms.loss().total, slow_loss(o, network, teacher, x_1, x_0, TIMES, y, dropped)
    torch.testing.assert_close(loss, slow, rtol=1e-7, atol=0)
    parameters = dict(network.named_parameters())
    fast_gradients = torch.autograd.grad(loss, list(parameters.values()))
    for name, p, q in zip(
        parameters, fast_gradients, torch.autograd.grad(slow, list(parameters.values())), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")
    return terms


DISTILLATION = {"velocity": "teacher"}
SCRATCH = {"velocity": "data"}
CASES = {
    "distillation": DISTILLATION,
    "distillation without guidance": DISTILLATION | {"w": 1.0},
    "distillation, teacher asked at the anchor": DISTILLATION | {"at_anchor": True},
    "distillation, guided everywhere": DISTILLATION | {"low": 0.0, "high": 1.0, "w": 3.0},
    "plain consistency": DISTILLATION | {"anchored": False},
    "from scratch": SCRATCH,
    "from scratch without guidance": SCRATCH | {"w": 1.0},
    "from scratch, v_u from the shortcut head": SCRATCH | {"at_shortcut": True},
    "from scratch, both terms online": SCRATCH | {"both_online": True},
    "from scratch, both online from the shortcut head": SCRATCH | {"both_online": True, "at_shortcut": True},
    "from scratch, extrapolated outside": SCRATCH | {"extrapolate_outside": True},
    "plain consistency from scratch": SCRATCH | {"anchored": False},
}


@pytest.mark.parametrize("task", TASKS, ids=["expanded", "auxiliary"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_match_the_equations_written_slowly(case, task):
    terms = compare(CASES[case] | {"task": task})
    assert 0.05 < (terms.g.abs() > 1).double().mean() < 0.95  # the clamp acts on some elements, and not on others


@pytest.mark.parametrize("case", [name for name, o in CASES.items() if o["velocity"] == "data"])
def test_a_sample_whose_label_was_dropped_is_not_guided(case):
    compare(CASES[case] | {"task": ExpandedInterval()}, DROPPED)


TABLE_4 = [
    (One(), lambda s: 1.0, One(), lambda s: 1.0),
    (One(), lambda s: 1.0, Cosine(), lambda s: math.cos(math.pi * s / 2)),
    (OneMinusPower(0.5), lambda s: 1 - s**0.5, One(), lambda s: 1.0),
    (OneMinusPower(1.0), lambda s: 1 - s, Cosine(), lambda s: math.cos(math.pi * s / 2)),
    (OneMinusPower(2.0), lambda s: 1 - s * s, OneMinusPower(0.5), lambda s: 1 - s**0.5),
    (OneMinusPower(0.5), lambda s: 1 - s**0.5, OneMinusPower(1.0), lambda s: 1 - s),
]


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize(("alpha", "slow_alpha", "beta", "slow_beta"), TABLE_4)
def test_every_kind_of_weighting_in_table_4(alpha, slow_alpha, beta, slow_beta, anchored):
    o = {"alpha": alpha, "beta": beta, "slow_alpha": slow_alpha, "slow_beta": slow_beta, "anchored": anchored}
    compare(DISTILLATION | {"task": ExpandedInterval()} | o)


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("clamp", [None, 0.3, 2.0])
def test_clamp_off_and_at_other_bounds(clamp, anchored):
    compare(DISTILLATION | {"task": ExpandedInterval(), "clamp": clamp, "anchored": anchored})


def test_shortcut_target_on_a_hand_case():
    F_CM, dF, v = torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, -2.0]]), torch.tensor([[0.5, 0.5]])
    target = shortcut_target(F_CM, dF, v, torch.tensor([0.75]), torch.tensor([0.5]), 1.0)
    assert target.v_bar.tolist() == [[1.0, 0.0]]  # v + 0.25 dF
    assert target.g.tolist() == [[0.0, 5.0]]  # before the clamp
    assert target.v_tar.tolist() == [[1.0, 4.5]]  # 5 - 0.5 * 1
    assert shortcut_target(F_CM, dF, v, torch.tensor([0.75]), torch.ones(1), None).v_tar.tolist() == [[1.0, 0.0]]
    assert shortcut_target(-F_CM, -dF, -v, torch.tensor([0.75]), torch.ones(1), 1.0).v_tar.tolist() == [[-1.0, -4.0]]


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


# Stop-gradients


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


# Draws


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


# A step in parts: ranks and micro-batches that share its draws, and the two losses of FACM

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def split(batch, sizes):
    start = 0
    for n in sizes:
        rows = slice(start, start + n)
        yield Batch(batch.x_1[rows], None if batch.cond is None else batch.cond[rows], start, len(batch.x_1))
        start += n


SIZES = [(8, 8), (4, 4, 4, 4), (1, 5, 10), (16,)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("label_dropout", [0.0, 0.4])
def test_a_part_draws_its_rows_of_what_the_whole_step_draws(sizes, label_dropout):
    batch = Batch(randn(16, DIM, 2), LABELS)
    rng, whole = generator(5), []
    for part in (batch, *split(batch, sizes)):
        rng = generator(5)
        d = Interpolant.draw(part, ArctanLogNormal(), Labels(CLASSES), label_dropout, rng)
        whole = whole or [d, rng.get_state()]
        assert torch.equal(rng.get_state(), whole[1])  # the step after this one draws the same, too
        rows = slice(part.start, part.start + len(part.x_1))
        for name, drawn in vars(d).items():
            expected = getattr(whole[0], name)
            assert drawn is expected is None or torch.equal(drawn, expected[rows]), name
        assert len(d.x_0) == len(d.t) == len(d.cond) == len(part.x_1)
        assert d.t.dtype == d.x_0.dtype == torch.float64
    assert label_dropout == 0 or 0 < whole[0].dropped.sum() < 16


def gradients(network, total):
    return torch.autograd.grad(total, list(network.parameters()), allow_unused=True)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    "objective",
    [
        FACM(Labels(CLASSES), DataVelocity(Guidance(1.75, 0.3, 0.8)), label_dropout=0.4),
        FACM(Labels(CLASSES), TeacherVelocity(Guidance(1.75, 0.3, 0.8))),
        ContinuousCM(Labels(CLASSES), DataVelocity(Guidance(1.75, 0.3, 0.8)), label_dropout=0.4),
        ContinuousCM(Labels(CLASSES), TeacherVelocity(Guidance(1.75, 0.3, 0.8))),
        FlowMatching(Labels(CLASSES), p_flow_condition=0.5, label_dropout=0.4),
        FlowMatching(Labels(CLASSES), p_flow_condition=0.3, label_dropout=0.0),
    ],
    ids=lambda o: f"{type(o).__name__}-{o.label_dropout}",
)
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(objective, sizes):
    assert objective.draws_for_whole_step
    network, teacher, batch = mlp(1), mlp(2), Batch(2 * randn(16, DIM), LABELS)
    whole = objective(network, batch, generator(5), teacher)
    expected, total, summed = gradients(network, whole.total), 0.0, None
    terms = {name: [] for name in whole.terms}
    for part in split(batch, sizes):
        weight = len(part.x_1) / 16
        loss = objective(network, part, generator(5), teacher)
        found = [weight * g for g in gradients(network, loss.total)]
        summed = found if summed is None else [a + b for a, b in zip(summed, found, strict=True)]
        total += weight * loss.total.item()
        for name, values in loss.terms.items():
            terms[name].append(values)
    assert total == pytest.approx(whole.total.item(), rel=1e-12)
    torch.testing.assert_close(tuple(summed), expected, **EXACT)
    for name, values in terms.items():
        torch.testing.assert_close(torch.cat(values), whole.terms[name], **EXACT)


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


@pytest.mark.parametrize("objective", [ContinuousCM, FlowMatching])
def test_the_loss_of_any_other_objective_is_one_part(objective):
    loss, network, batch = objective(Labels(CLASSES)), mlp(1), Batch(randn(16, DIM), LABELS)
    (term,) = loss.loss_terms(network, batch, generator(5), TEACHER)
    assert torch.equal(term().total, loss(network, batch, generator(5), TEACHER).total)


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


# Precision and dropout


class Halved(torch.nn.Module):
    """Answers in bf16, as under autocast."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t, cond):
        return self.network(x, t, cond).bfloat16()


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


def test_flow_matching_lifts_half_precision():
    x = randn(16, DIM).float()
    terms = FlowMatching(Labels(CLASSES)).evaluate(
        Halved(mlp(1).float()), Interpolant.between(x.flip(0), x, TIMES.float(), LABELS)
    )
    assert terms.F.dtype == terms.L_FM.dtype == torch.float32


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


# Flow matching


@pytest.mark.parametrize("task", TASKS)
def test_flow_matching_with_mixed_conditioning_matches_the_slow_loop(task):
    network, x_1, x_0 = mlp(1, task == AuxiliaryTime()), randn(16, DIM), randn(16, DIM, seed=1)
    anchored = torch.arange(16) % 3 == 0
    terms = FlowMatching(Labels(CLASSES), task).evaluate(
        network, Interpolant.between(x_0, x_1, TIMES, LABELS), anchored
    )
    losses = []
    for i in range(16):
        s, v = TIMES[i].item(), x_1[i : i + 1] - x_0[i : i + 1]
        x = (1 - s) * x_0[i : i + 1] + s * x_1[i : i + 1]
        F = ask(network, task, "anchor" if i % 3 == 0 else "shortcut", x, s, LABELS[i : i + 1])
        losses.append(((F - v) ** 2).mean() + 1 - (F * v).sum() / F.norm() / v.norm())
    slow, parameters = torch.stack(losses), list(network.parameters())
    torch.testing.assert_close(terms.L_FM, slow)
    torch.testing.assert_close(terms.loss().total, slow.mean())
    torch.testing.assert_close(terms.loss().terms["flow"], slow.detach())
    fast_gradients = torch.autograd.grad(terms.loss().total, parameters)
    torch.testing.assert_close(fast_gradients, torch.autograd.grad(slow.mean(), parameters))


def test_flow_matching_without_a_mask_asks_at_the_plain_time():
    network, x_1, x_0 = mlp(1), randn(16, DIM), randn(16, DIM, seed=1)
    plain = FlowMatching(Labels(CLASSES)).evaluate(network, Interpolant.between(x_0, x_1, TIMES, LABELS))
    torch.testing.assert_close(plain.F, network(plain.x_t, TIMES, LABELS))


@pytest.mark.parametrize(("mixed", "label_dropout"), [(0.5, 0.1), (0.2, 0.0), (0.0, 0.5), (1.0, 1.0)])
def test_flow_matching_mixes_and_drops_the_wanted_fractions(mixed, label_dropout):
    class Recorder(torch.nn.Module):
        def forward(self, x, t, cond):
            self.t, self.cond = t, cond
            return x

    network, n = Recorder(), 8000
    loss = FlowMatching(Labels(CLASSES), p_flow_condition=mixed, label_dropout=label_dropout)
    batch = Batch(torch.randn(n, 2, generator=generator()), torch.arange(n) % CLASSES)
    loss(network, batch, generator(1))
    assert (network.t > 1).float().mean().item() == pytest.approx(mixed, abs=0.02)
    assert (network.cond == CLASSES).float().mean().item() == pytest.approx(label_dropout, abs=0.02)
    independent = ((network.t > 1) & (network.cond == CLASSES)).float().mean().item()
    assert independent == pytest.approx(mixed * label_dropout, abs=0.02)
    rng = generator(1)
    torch.randn(n, 2, generator=rng)
    t = loss.time.sample(n, rng)
    anchored = torch.rand(n, generator=rng) < mixed
    assert torch.equal(network.t, torch.where(anchored, 2 - t, t))


# Errors


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


def test_flow_matching_checks_its_arguments():
    loss, x = FlowMatching(Labels(CLASSES)), randn(16, DIM)
    with pytest.raises(ValueError, match=r"labels run over \[0, 4\]"):
        loss.evaluate(mlp(1), Interpolant.between(x, x, TIMES, LABELS * 2))
    with pytest.raises(ValueError, match=r"t has shape \(1,\)"):
        loss.evaluate(mlp(1), Interpolant.between(x, x, TIMES[:1], LABELS))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FACM(Labels(3), clamp=0.0), "clamp = 0.0"),
        (lambda: ContinuousCM(Labels(3), clamp=-1.0), "clamp = -1.0"),
        (lambda: FACM(Labels(3), label_dropout=1.0), "label_dropout = 1.0"),
        (lambda: ContinuousCM(Labels(3), label_dropout=-0.1), "label_dropout = -0.1"),
        (lambda: FACM(Labels(3), DataVelocity(Guidance(1.75))), "label_dropout = 0 with guidance scale 1.75"),
        (lambda: ContinuousCM(Labels(3), DataVelocity(Guidance(1.75))), "label_dropout = 0 with guidance scale 1.75"),
        (lambda: FlowMatching(Labels(3), p_flow_condition=1.5), "p_flow_condition = 1.5"),
        (lambda: FlowMatching(Labels(3), label_dropout=-0.5), "label_dropout = -0.5"),
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
    with pytest.raises(ValueError, match=r"guidance scale = 1.75 with condition = Unconditional\(\)"):
        objective(Unconditional(), velocity)
    for make in (lambda: FlowMatching(Unconditional()), lambda: objective(Unconditional(), label_dropout=0.1)):
        with pytest.raises(ValueError, match=r"label_dropout = 0\.1"):
            make()


def test_objectives_say_whether_they_learn_the_shortcut():
    learnt = [getattr(objective, "learns_shortcut", False) for objective in (FACM, ContinuousCM, FlowMatching)]
    assert learnt == [True, True, False]

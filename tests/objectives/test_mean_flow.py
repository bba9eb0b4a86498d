"""MeanFlow: zero at the exact average velocity between any two times, equal in value and gradient to its equations
written out slowly, and to the numbers of the FACM authors' reproduction (see golden/README.md)."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from facm.core.serialize import from_json, to_json
from facm.core.types import Batch
from facm.derivative import Chain, FiniteDifference, NoGraph, OpLevel, WholeNetwork
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.times import ArctanLogNormal, Uniform
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.lightning_dit import from_reference_flags
from facm.networks.mlp import MLP
from facm.objectives.mean_flow import MeanFlow
from facm.runs.config import Run
from facm.training.checks import check
from tests.core.core_parts import generator, randn
from tests.flow.flow_parts import split
from tests.golden.gold import fill, probe, tensor
from tests.objectives import objective_parts
from tests.objectives.objective_parts import CLASSES, DIM, DROPPED, LABELS, M, S, instantaneous, spread
from tests.paths import GOLDEN


def mlp(seed, auxiliary_time=True, dropout=0.0):
    return objective_parts.mlp(seed, auxiliary_time, dropout, scale=1.5)


TEACHER = mlp(2, auxiliary_time=False)


# The exact solution for Gaussian data, x_1 ~ N(M, S^2)


class Exact(torch.nn.Module):
    """(x_r - x_t) / (r - t) along the exact flow, where x_r = r M + (x_t - t M) spread_r / spread_t."""

    auxiliary_time = True

    def forward(self, x, t, cond=None, r=None):
        apart = torch.where(r == t, torch.ones_like(t), r - t)[:, None]
        moved = r[:, None] * M + (x - t[:, None] * M) * (spread(r) / spread(t))[:, None]
        return torch.where((r == t)[:, None], instantaneous(x, t), (moved - x) / apart)


class Off(Exact):
    def forward(self, x, t, cond=None, r=None):
        return 1.01 * super().forward(x, t, cond, r)


class Elsewhere(Exact):
    """Exact for a later time than it is asked for."""

    def forward(self, x, t, cond=None, r=None):
        return super().forward(x, t, cond, r + 0.02)


def exact_loss(network, derivative=None, equal=0.3):
    objective = MeanFlow(
        Unconditional(), TeacherVelocity(NO_GUIDANCE), Uniform(0.01, 0.95), equal, derivative=derivative or OpLevel()
    )
    return objective(network, Batch(M + S * randn(512, DIM)), generator(), instantaneous)


@pytest.mark.parametrize("derivative", [OpLevel(), NoGraph(), WholeNetwork()], ids=str)
@pytest.mark.parametrize("equal", [0.0, 0.3, 1.0])
def test_exact_average_velocity_has_zero_loss(derivative, equal):
    assert exact_loss(Exact(), derivative, equal).total.item() < 1e-9


def test_exact_average_velocity_has_zero_loss_by_finite_differences():
    """Away from r = t, where the closed form above is not smooth."""
    objective = MeanFlow(Unconditional(), TeacherVelocity(NO_GUIDANCE), derivative=FiniteDifference(1e-4))
    x_1, x_0 = M + S * randn(64, DIM), randn(64, DIM, seed=1)
    t = torch.linspace(0.01, 0.6, 64, dtype=torch.float64)
    assert objective.evaluate(Exact(), Interpolant.between(x_0, x_1, t), t + 0.3, instantaneous).error.max() < 1e-12


@pytest.mark.parametrize("network", [Off(), Elsewhere()])
def test_any_other_network_has_a_loss(network):
    assert exact_loss(network).terms["error"].mean() > 1e-5


# The equations, written slowly


def ask(network, x, s, label, r=None):
    """One sample (1, DIM) at the numbers s and, where the network takes it, r."""
    times = [torch.full((1,), c, dtype=x.dtype) for c in ((s,) if r is None else (s, r))]
    return network(x, times[0], label, *times[1:])


def slow_velocity(o, network, teacher, x_1, x_0, x, s, y, dropped):
    w, low, high = o.get("w", 1.75), 0.125, 0.8
    inside, null = low <= s <= high, torch.tensor([CLASSES])
    if o["velocity"] == "teacher":
        r = s if o.get("auxiliary_teacher") else None
        v_c, v_u = ask(teacher, x, s, y, r), ask(teacher, x, s, null, r)
        return v_u + w * (v_c - v_u) if inside else v_c
    v = x_1 - x_0
    if w == 1 or dropped or not inside:
        return v
    v_u = ask(network, x, s, null, s)  # the network's own velocity: r = t
    return v_u + w * (v - v_u)


def slow_loss(o, network, teacher, x_1, x_0, t, r, y, dropped, h=1e-5):
    losses = []
    for i in range(len(x_1)):
        a, b, s, end, label = x_1[i : i + 1], x_0[i : i + 1], t[i].item(), r[i].item(), y[i : i + 1]
        x = s * a + (1 - s) * b
        with torch.no_grad():
            v = slow_velocity(o, network, teacher, a, b, x, s, label, bool(dropped is not None and dropped[i]))
            ahead, behind = ask(network, x + h * v, s + h, label, end), ask(network, x - h * v, s - h, label, end)
            target = v + (end - s) * (ahead - behind) / (2 * h)
        e = ((ask(network, x, s, label, end) - target) ** 2).sum() / DIM
        losses.append(e / (e.item() + o.get("c", 1e-3)) ** o.get("p", 1.0))
    return torch.stack(losses).mean()


TIMES = torch.tensor([0.03, 0.124, 0.125, 0.31, 0.57, 0.8, 0.801, 0.97] * 2, dtype=torch.float64)
ENDS = torch.tensor([0.5, 0.124, 0.9, 0.35, 1.0, 0.8, 0.95, 0.98, 0.03, 0.2, 1.0, 1.0, 0.6, 0.9, 0.801, 1.0]).double()
CASES = {
    "distillation": {"velocity": "teacher"},
    "distillation from a teacher with two times": {"velocity": "teacher", "auxiliary_teacher": True},
    "distillation without guidance": {"velocity": "teacher", "w": 1.0},
    "from scratch": {"velocity": "data"},
    "from scratch without guidance": {"velocity": "data", "w": 1.0},
    "another weight": {"velocity": "data", "p": 0.5, "c": 0.1},
    "no weight": {"velocity": "teacher", "p": 0.0},
}


def objective_of(o, **options):
    kind = TeacherVelocity if o["velocity"] == "teacher" else DataVelocity
    velocity = kind(Guidance(o.get("w", 1.75), 0.125, 0.8))
    return MeanFlow(Labels(CLASSES), velocity, p=o.get("p", 1.0), c=o.get("c", 1e-3), label_dropout=0.1, **options)


@pytest.mark.parametrize("derivative", [OpLevel(), WholeNetwork()], ids=str)
@pytest.mark.parametrize("dropped", [None, DROPPED], ids=["all labels", "some dropped"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_match_the_equations_written_slowly(case, dropped, derivative):
    o = CASES[case]
    network, teacher = mlp(1).train(), mlp(2, o.get("auxiliary_teacher", False))
    x_1, x_0 = 2 * randn(16, DIM, seed=3), randn(16, DIM, seed=4)
    y = LABELS if dropped is None else torch.where(dropped, CLASSES, LABELS)
    terms = objective_of(o, derivative=derivative).evaluate(
        network, Interpolant.between(x_0, x_1, TIMES, y, dropped), ENDS, teacher
    )
    loss, slow = terms.loss().total, slow_loss(o, network, teacher, x_1, x_0, TIMES, ENDS, y, dropped)
    torch.testing.assert_close(loss, slow, rtol=1e-7, atol=0)
    parameters = list(network.parameters())
    fast = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(fast, torch.autograd.grad(slow, parameters), rtol=1e-6, atol=1e-8)


# The reference's numbers

STORED = load_file(GOLDEN / "rivals.safetensors")
SCALARS = json.loads((GOLDEN / "rivals.json").read_text())["meanflow_B_distill"]
FLAGS = json.loads((GOLDEN / "dit_state_dicts.json").read_text())["tinyB"]["cfg"]
DRAWS = torch.tensor([[0.03, 0.125, 0.31, 0.57, 0.83, 0.985], [0.44, 0.08, 0.66, 0.57, 0.20, 0.74]])


@pytest.mark.parametrize("derivative", [OpLevel(), NoGraph(), WholeNetwork(), Chain()], ids=str)
def test_golden_every_intermediate_and_every_gradient(derivative):
    def close(a, name, rtol=1e-5):
        b = STORED[f"meanflow_B_distill/{name}"]
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())

    student, teacher = (fill(from_reference_flags(FLAGS).build(), salt) for salt in ("student", "teacher"))
    objective = MeanFlow(Labels(1000), TeacherVelocity(Guidance(1.75, 0.125, 1.0)), derivative=derivative)
    x_1, x_0 = (tensor(f"loss:{what}", (6, 4, 8, 8)) for what in ("images", "noise"))
    (t, r), y = DRAWS.sort(0).values, torch.tensor([3, 207, 0, 999, 512, 88])
    close(t, "t", 0)
    close(r, "r", 0)
    terms = objective.evaluate(student.train(), Interpolant.between(x_0, x_1, t, y), r, teacher.eval())
    stored = {"v": "v", "F": "F_avg", "dF": "F_avg_grad", "v_bar": "v_bar", "L_norm": "cm_per_sample_unweighted"}
    for ours, theirs in stored.items():
        close(getattr(terms, ours).detach(), theirs)
    terms.loss().total.backward()
    assert terms.loss().total.item() == pytest.approx(SCALARS["total"], rel=1e-5)
    assert terms.dF.square().mean().sqrt().item() == pytest.approx(SCALARS["tangent_rms"], rel=1e-5)
    gradients = {k: p.grad for k, p in student.named_parameters() if p.grad is not None}
    assert gradients.keys() == SCALARS["grad_norm"].keys()
    for k, g in gradients.items():
        assert g.norm().item() == pytest.approx(SCALARS["grad_norm"][k], rel=1e-4), k
        assert probe(k, g) == pytest.approx(SCALARS["grad_probe"][k], abs=1e-4 * SCALARS["grad_norm"][k]), k
        if f"meanflow_B_distill/grad.{k}" in STORED:
            close(g, f"grad.{k}", 1e-4)
    assert sum(f"meanflow_B_distill/grad.{k}" in STORED for k in gradients) == 5


# Graphs, terms, precision, dropout


@pytest.mark.parametrize("derivative", [OpLevel(), NoGraph(), WholeNetwork(), FiniteDifference()], ids=str)
@pytest.mark.parametrize("velocity", [TeacherVelocity(), DataVelocity(Guidance())])
def test_only_the_prediction_carries_a_graph(velocity, derivative):
    network, teacher = mlp(1), mlp(2, False)
    objective = MeanFlow(Labels(CLASSES), velocity, derivative=derivative, label_dropout=0.1)
    terms = objective.evaluate(
        network, Interpolant.between(randn(16, DIM, seed=1), randn(16, DIM), TIMES, LABELS), ENDS, teacher
    )
    assert not any(x.requires_grad for x in (terms.x_t, terms.v, terms.dF, terms.v_bar))
    assert terms.F.requires_grad
    out = terms.loss()
    assert not any(value.requires_grad for value in out.terms.values())
    assert all(value.shape == (16,) for value in out.terms.values())
    out.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_terms_for_the_log():
    terms = MeanFlow(Labels(CLASSES)).evaluate(
        mlp(1), Interpolant.between(randn(16, DIM, seed=1), 2 * randn(16, DIM), TIMES, LABELS), ENDS, TEACHER
    )
    loss = terms.loss()
    torch.testing.assert_close(loss.terms["error"], (terms.F - terms.v_bar).square().mean(1).detach())
    torch.testing.assert_close(loss.terms["shortcut"], loss.terms["error"] / (loss.terms["error"] + 1e-3))
    torch.testing.assert_close(loss.terms["tangent_rms"], terms.dF.norm(dim=1) / math.sqrt(DIM))
    torch.testing.assert_close(loss.total, loss.terms["shortcut"].mean())


def test_half_precision_answers_are_lifted_before_anything_is_computed_with_them():
    class Halved(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.auxiliary_time = network, network.auxiliary_time

        def forward(self, x, t, cond, r=None):
            return self.network(x, t, cond, r).bfloat16()

    x, y = randn(16, DIM).float(), randn(16, DIM, seed=1).float()
    network, teacher = Halved(mlp(1).float()), Halved(mlp(2, False).float())
    terms = MeanFlow(Labels(CLASSES)).evaluate(
        network, Interpolant.between(y, x, TIMES.float(), LABELS), ENDS.float(), teacher
    )
    assert all(value.dtype == torch.float32 for value in vars(terms).values())


def test_guidance_and_prediction_of_one_step_see_one_dropout_mask():
    """At r = t, under the null, the network is asked the same question twice."""
    network, null = mlp(1, dropout=0.3).train(), torch.full((16,), CLASSES)
    objective = MeanFlow(Labels(CLASSES), DataVelocity(Guidance(2.0, 0.0, 1.0)), label_dropout=0.1)
    x_1, x_0 = randn(16, DIM), randn(16, DIM, seed=1)
    terms = objective.evaluate(network, Interpolant.between(x_0, x_1, TIMES, null), TIMES)
    torch.testing.assert_close(terms.v, terms.F.detach() + 2.0 * (x_1 - x_0 - terms.F.detach()))
    assert torch.equal(terms.v, terms.v_bar)  # flow matching


# Draws


@pytest.mark.parametrize("equal", [0.0, 0.4])
def test_a_call_draws_everything_from_the_generator(equal):
    network, batch = mlp(1), Batch(randn(64, DIM), torch.arange(64) % CLASSES)
    objective = MeanFlow(Labels(CLASSES), DataVelocity(Guidance()), Uniform(0.1, 0.9), equal, label_dropout=0.3)
    rng = generator(5)
    x_0 = torch.randn(64, DIM, generator=rng, dtype=torch.float64)
    first = objective.time.sample(64, rng).double()
    dropped = torch.rand(64, generator=rng) < 0.3
    second = objective.time.sample(64, rng).double()
    t, r = torch.stack([first, second]).sort(0).values
    if equal:
        same = torch.rand(64, generator=rng) < equal
        r = torch.where(same, t, r)
        assert 10 < same.sum() < 45
    cond = Labels(CLASSES).drop(batch.cond, dropped)
    expected = objective.evaluate(network, Interpolant.between(x_0, batch.x_1, t, cond, dropped), r).loss()
    assert torch.equal(objective(network, batch, generator(5)).total, expected.total)


@pytest.mark.parametrize("equal", [0.0, 0.25, 0.75, 1.0])
def test_times_are_in_order_and_the_wanted_fraction_of_them_is_equal(equal):
    class Recorder(torch.nn.Module):
        auxiliary_time = True

        def forward(self, x, t, cond, r):
            self.t, self.r = torch.autograd.forward_ad.unpack_dual(t).primal, r
            return x

    network = Recorder()
    objective = MeanFlow(Labels(CLASSES), DataVelocity(NO_GUIDANCE), Uniform(), equal, derivative=NoGraph())
    objective(network, Batch(torch.zeros(8000, 1), torch.zeros(8000, dtype=torch.long)), generator())
    t, r = network.t, network.r
    assert bool((t <= r).all())
    assert (t == r).float().mean().item() == pytest.approx(equal, abs=0.02)
    assert t.mean().item() == pytest.approx(1 / 3, abs=0.02)  # the earlier of two uniform times, equal or not
    if equal < 1:
        assert r[t < r].mean().item() == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.parametrize("sizes", [(8, 8), (1, 5, 10), (16,)])
@pytest.mark.parametrize("equal", [0.0, 0.5])
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(sizes, equal):
    network, batch = mlp(1), Batch(2 * randn(16, DIM), LABELS)
    objective = MeanFlow(Labels(CLASSES), DataVelocity(Guidance()), data_proportion=equal, label_dropout=0.4)
    assert objective.draws_for_whole_step
    parameters, whole = list(network.parameters()), objective(network, batch, generator(5))
    expected = torch.autograd.grad(whole.total, parameters)
    summed, errors = [0.0] * len(parameters), []
    for part in split(batch, sizes):
        loss = objective(network, part, generator(5))
        found = torch.autograd.grad(loss.total, parameters)
        summed = [a + len(part.x_1) / 16 * b for a, b in zip(summed, found, strict=True)]
        errors.append(loss.terms["error"])
    torch.testing.assert_close(tuple(summed), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat(errors), whole.terms["error"], rtol=1e-10, atol=1e-12)


# The definition, and what is refused


def test_defaults_and_what_it_says_about_itself():
    objective = MeanFlow(Labels(3))
    assert objective.velocity == TeacherVelocity(Guidance(1.75, 0.125, 1.0))
    assert objective.time == ArctanLogNormal(-0.8, 1.6)
    assert (objective.data_proportion, objective.p, objective.c, objective.label_dropout) == (0.0, 1.0, 1e-3, 0.0)
    assert objective.task == AuxiliaryTime()
    assert objective.learns_shortcut
    assert from_json(to_json(objective)) == objective


def test_a_network_without_a_second_time_is_an_error():
    with pytest.raises(ValueError, match=r"passes a second time r, but the network \(MLPNetwork\) has none"):
        MeanFlow(Labels(CLASSES))(mlp(1, False), Batch(randn(16, DIM), LABELS), generator(), TEACHER)


def test_a_run_is_refused_before_it_starts_where_the_network_takes_no_second_time():
    from facm.data import Moons

    def run(auxiliary_time):
        network = MLP(width=8, depth=1, num_classes=2, auxiliary_time=auxiliary_time)
        return Run(network, Moons(n=20), MeanFlow(Labels(2), DataVelocity()), images=64)

    check(run(True))
    with pytest.raises(ValueError, match="passes a second time r"):
        check(run(False))


BAD = {
    "no teacher": (r"TeacherVelocity\(\) needs a teacher", {"teacher": None}),
    "one end for all": (r"r has shape \(1,\), expected \(16,\)", {"r": torch.ones(1)}),
    "end above 1": (r"r runs over .*within \[0, 1\]", {"r": ENDS + 0.5}),
    "end below 0": (r"r runs over \[-0.97", {"r": ENDS - 1.0}),
    "time above 1": (r"t runs over .*\[0, 1\]", {"t": TIMES + 0.5}),
    "label out of range": (r"labels run over \[0, 4\]", {"cond": LABELS * 2}),
    "no labels": ("no labels", {"cond": None}),
    "noise of another shape": (r"x_0 \(16, 1\)", {"x_0": randn(16, 1)}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_argument_is_an_error_that_names_it(case):
    named, changed = BAD[case]
    arguments = {"x_0": randn(16, DIM, seed=1), "t": TIMES, "r": ENDS, "cond": LABELS, "teacher": TEACHER} | changed
    r, teacher = arguments.pop("r"), arguments.pop("teacher")
    with pytest.raises(ValueError, match=named):
        MeanFlow(Labels(CLASSES)).evaluate(mlp(1), Interpolant.between(x_1=randn(16, DIM), **arguments), r, teacher)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"data_proportion": 1.5}, "data_proportion = 1.5"),
        ({"data_proportion": -0.1}, "data_proportion = -0.1"),
        ({"p": -1.0}, r"MeanFlow: p = -1\.0"),
        ({"c": 0.0}, r"c = 0\.0, expected"),
        ({"label_dropout": 1.0}, "label_dropout = 1.0"),
        (
            {"velocity": DataVelocity(Guidance(1.75))},
            "label_dropout = 0.0, expected a positive one",
        ),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(options, named):
    with pytest.raises(ValueError, match=named):
        MeanFlow(Labels(3), **options)


def test_unconditional_data_cannot_be_guided():
    with pytest.raises(ValueError, match=r"condition = Unconditional\(\), expected labels .* guidance scale = 1.75"):
        MeanFlow(Unconditional())

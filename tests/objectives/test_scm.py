"""sCM: zero at the exact solution, equal in value and gradient to its equations written out slowly, and to the numbers
of the FACM authors' reproduction (see golden/README.md); its learned weight on one rank and on two; its pixel norm."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from facm.core.serialize import from_json, to_json
from facm.core.state_dict import CheckpointError, load_strictly
from facm.core.types import Batch
from facm.derivative import Chain, FiniteDifference, NoGraph, OpLevel, Prediction, WholeNetwork
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.flow.times import ArctanLogNormal, Uniform
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.flow.weighting import Cosine, One
from facm.networks.lightning_dit import LightningDiT, from_reference_flags, pixel_norm
from facm.networks.mlp import MLP
from facm.objectives.scm import SCM, log_weight
from facm.runs.config import Intervals, Run
from facm.runs.optim import AdamW
from facm.training.checks import check
from tests.core.core_parts import generator, randn
from tests.distributed.parallel_parts import call, difference, log_of, train_in
from tests.golden.gold import fill, probe, tensor, weight
from tests.objectives import objective_parts
from tests.objectives.objective_parts import CLASSES, DIM, DROPPED, LABELS, TIMES, M, S, instantaneous, spread
from tests.paths import GOLDEN


def mlp(seed, auxiliary_time=False, weight_head=True, dropout=0.0):
    network = objective_parts.mlp(seed, auxiliary_time, dropout, weight_head=weight_head, scale=1.5)
    if weight_head:
        torch.nn.init.normal_(network.head[2].weight, std=0.5)
        torch.nn.init.constant_(network.head[2].bias, 0.3)
    return network


TEACHER = mlp(2)


# The exact solution for Gaussian data, x_1 ~ N(M, S^2)

TASKS = [ExpandedInterval(), AuxiliaryTime()]
STRATEGIES = [OpLevel(), NoGraph(), WholeNetwork(), FiniteDifference(1e-4)]


class Exact(torch.nn.Module):
    """(x_1 - x_t) / (1 - t) along the exact flow."""

    factor, auxiliary_time = 1.0, True

    def forward(self, x, t, cond=None, r=None):
        t = t[:, None]
        return self.factor * (M + S * (x - t * M) / spread(t) - x) / (1 - t)


def exact_terms(network, ramp=1.0, task=TASKS[0], derivative=STRATEGIES[0], **options):
    objective = SCM(
        Unconditional(), TeacherVelocity(NO_GUIDANCE), task, adaptive=False, derivative=derivative, **options
    )
    t = torch.linspace(0.01, 0.95, 256, dtype=torch.float64)
    x_1, x_0 = M + S * randn(256, DIM), randn(256, DIM, seed=1)
    return objective.evaluate(
        network, Interpolant.between(x_0, x_1, t), lambda x, t, cond: instantaneous(x, t), ramp=ramp
    )


@pytest.mark.parametrize("derivative", STRATEGIES, ids=str)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bound", [{}, {"normalise": None}, {"normalise": None, "clamp": 1.0}])
def test_exact_solution_has_zero_loss(bound, task, derivative):
    terms = exact_terms(Exact(), 1.0, task, derivative, **bound)
    assert terms.loss().total.item() < (1e-12 if not isinstance(derivative, FiniteDifference) else 1e-8)


def test_any_other_network_has_a_loss_and_so_has_the_exact_one_before_the_warm_up_ends():
    network = Exact()
    assert exact_terms(network, 0.5).loss().total > 1e-2
    network.factor = 1.01
    assert exact_terms(network).loss().total > 1e-4


# The equations, written slowly


def ask(network, task, head, x, s, y):
    t = torch.full((1,), s, dtype=x.dtype)
    if isinstance(task, AuxiliaryTime):
        return network(x, t, y, torch.ones_like(t) if head == "shortcut" else t)
    return network(x, 2 - t if head == "anchor" else t, y)


def slow_velocity(o, network, teacher, x_1, x_0, x, s, y, dropped):
    w, inside, null = o.get("w", 1.75), 0.125 <= s <= 0.8, torch.tensor([CLASSES])
    if o.get("velocity", "teacher") == "teacher":
        v_c, v_u = (ask(teacher, o["task"], "native", x, s, label) for label in (y, null))
        return v_u + w * (v_c - v_u) if inside else v_c
    v = x_1 - x_0
    if w == 1 or dropped or not inside:
        return v
    return v + (w - 1) * (v - ask(network, o["task"], "shortcut", x, s, null))


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
            slope = o.get("ramp", 1.0) * (1 - s) * (ahead - behind) / (2 * h)
            g = o.get("slow_alpha", lambda s: math.cos(math.pi * s / 2))(s) * (frozen - v - slope)
            if o.get("clamp") is not None:
                target = frozen - torch.clip(g, -o["clamp"], o["clamp"])
            elif o.get("normalise", 0.1) is not None:
                target = frozen - g / (g.norm() / DIM**0.5 + o.get("normalise", 0.1))
            else:
                target = frozen - g
        e = ((ask(network, o["task"], "shortcut", x, s, label) - target) ** 2).sum() / DIM
        if o.get("adaptive", True):
            w = network.log_weight(torch.tensor([s], dtype=x.dtype))[0]
            e = torch.exp(w) * e - w
        losses.append(e)
    return torch.stack(losses).mean()


SWITCHES = ("normalise", "clamp", "alpha", "adaptive")
CASES = {
    "distillation": {},
    "distillation without guidance": {"w": 1.0},
    "with equal weights": {"adaptive": False},
    "in the warm-up": {"ramp": 0.3},
    "at the start of the warm-up": {"ramp": 0.0},
    "another constant": {"normalise": 1.0},
    "not normalised": {"normalise": None, "adaptive": False},
    "clamped": {"normalise": None, "clamp": 0.5},
    "not weighted by time": {"alpha": One(), "slow_alpha": lambda s: 1.0},
    "from scratch": {"velocity": "data"},
    "from scratch without guidance": {"velocity": "data", "w": 1.0},
}


@pytest.mark.parametrize("task", TASKS, ids=["expanded", "auxiliary"])
@pytest.mark.parametrize("dropped", [None, DROPPED], ids=["all labels", "some dropped"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_match_the_equations_written_slowly(case, dropped, task):
    o = CASES[case] | {"task": task}
    two_times, guidance = isinstance(task, AuxiliaryTime), Guidance(o.get("w", 1.75), 0.125, 0.8)
    velocity = DataVelocity(guidance, at_shortcut=True) if "velocity" in o else TeacherVelocity(guidance)
    network, teacher = mlp(1, two_times, o.get("adaptive", True)).train(), mlp(2, two_times)
    x_1, x_0 = 2 * randn(16, DIM, seed=3), randn(16, DIM, seed=4)
    y = LABELS if dropped is None else torch.where(dropped, CLASSES, LABELS)
    objective = SCM(Labels(CLASSES), velocity, task, label_dropout=0.1, **{k: o[k] for k in SWITCHES if k in o})
    ramp = {"ramp": o["ramp"]} if "ramp" in o else {}
    point = Interpolant.between(x_0, x_1, TIMES, y, dropped)
    loss = objective.evaluate(network, point, teacher, **ramp).loss().total
    slow = slow_loss(o, network, teacher, x_1, x_0, TIMES, y, dropped)
    torch.testing.assert_close(loss, slow, rtol=1e-7, atol=0)
    parameters = list(network.parameters())
    fast = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(fast, torch.autograd.grad(slow, parameters), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dim", [2, 200])
def test_the_size_of_the_target_does_not_depend_on_the_dimension(dim):
    class Constant(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return torch.full_like(x, 3.0) + 0 * x

    objective = SCM(Unconditional(), DataVelocity(), alpha=One(), adaptive=False)
    zero = torch.zeros(4, dim)
    terms = objective.evaluate(Constant(), Interpolant.between(zero, zero, torch.full((4,), 0.5)))
    torch.testing.assert_close(terms.g, torch.full((4, dim), 3.0))
    torch.testing.assert_close(terms.v_tar, torch.full((4, dim), 3.0 - 3.0 / 3.1))


def test_the_learned_weight_is_at_rest_where_it_is_one_over_the_error():
    terms = SCM(Labels(CLASSES)).evaluate(
        mlp(1), Interpolant.between(randn(16, DIM, seed=1), randn(16, DIM), TIMES, LABELS), TEACHER
    )
    (slope,) = torch.autograd.grad(terms.L_CM.sum(), terms.log_weight)
    torch.testing.assert_close(slope, (terms.log_weight.exp() * terms.error - 1).detach())
    assert slope.abs().max() > 0.1


# The reference's numbers

STORED = load_file(GOLDEN / "rivals.safetensors")
SCALARS = json.loads((GOLDEN / "rivals.json").read_text())["scm_A_distill_it2500"]
FLAGS = json.loads((GOLDEN / "dit_state_dicts.json").read_text())["tinyA"]["cfg"]


@torch.no_grad()
def golden_student():
    student = fill(from_reference_flags(FLAGS | {"weight_head": True}).build(), "student")
    for name, p in student.AdaLoss.named_parameters():
        p.copy_(weight("adaloss", name, tuple(p.shape)))
    return student.train()


@pytest.mark.parametrize("derivative", [OpLevel(), NoGraph(), WholeNetwork(), Chain()], ids=str)
def test_golden_every_intermediate_and_every_gradient(derivative):
    def close(a, name, rtol=1e-5):
        b = STORED[f"scm_A_distill_it2500/{name}"]
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())

    student, teacher = golden_student(), fill(from_reference_flags(FLAGS).build(), "teacher").eval()
    objective = SCM(Labels(1000), TeacherVelocity(Guidance(1.75, 0.125, 1.0)), derivative=derivative)
    x_1, x_0 = (tensor(f"loss:{what}", (6, 4, 8, 8)) for what in ("images", "noise"))
    t, y = STORED["scm_A_distill_it2500/t"], torch.tensor([3, 207, 0, 999, 512, 88])
    ramp = dataclasses.replace(objective, warmup_images=10_000).ramp(SCALARS["iters"])
    terms = objective.evaluate(student, Interpolant.between(x_0, x_1, t, y), teacher, ramp=ramp)
    stored = {"v": "v", "F_CM": "F_avg", "dF": "F_avg_grad", "v_bar": "v_bar", "v_tar": "cm_target"}
    for ours, theirs in (stored | {"error": "cm_per_sample_unweighted"}).items():
        close(getattr(terms, ours).detach(), theirs)
    assert terms.dF.square().mean().sqrt().item() == pytest.approx(SCALARS["tangent_rms"], rel=1e-5)
    assert terms.loss().total.item() == pytest.approx(0.643559, abs=1e-6)  # each sample with its own weight

    w, e = terms.log_weight, terms.error  # the reference pairs each sample's weight with every sample's error
    paired = (w.exp()[:, None] * e[None] - w[:, None]).mean()
    assert paired.item() == pytest.approx(SCALARS["total"], rel=1e-5)
    paired.backward()
    gradients = {k: p.grad for k, p in student.named_parameters() if p.grad is not None}
    assert gradients.keys() == SCALARS["grad_norm"].keys()
    for k, g in gradients.items():
        assert g.norm().item() == pytest.approx(SCALARS["grad_norm"][k], rel=1e-4), k
        assert probe(k, g) == pytest.approx(SCALARS["grad_probe"][k], abs=1e-4 * SCALARS["grad_norm"][k]), k
        if f"scm_A_distill_it2500/grad.{k}" in STORED:
            close(g, f"grad.{k}", 1e-4)
    assert sum(f"scm_A_distill_it2500/grad.{k}" in STORED for k in gradients) == 6


# Graphs, terms, precision


@pytest.mark.parametrize("derivative", [OpLevel(), NoGraph(), WholeNetwork(), FiniteDifference()], ids=str)
@pytest.mark.parametrize("velocity", [TeacherVelocity(), DataVelocity(Guidance(), at_shortcut=True)])
def test_only_the_prediction_and_the_weight_carry_a_graph(velocity, derivative):
    network, teacher = mlp(1), mlp(2, weight_head=False)
    objective = SCM(Labels(CLASSES), velocity, derivative=derivative, label_dropout=0.1)
    terms = objective.evaluate(
        network, Interpolant.between(randn(16, DIM, seed=1), randn(16, DIM), TIMES, LABELS), teacher
    )
    assert not any(x.requires_grad for x in (terms.x_t, terms.v, terms.dF, terms.v_bar, terms.g, terms.v_tar))
    assert terms.F_CM.requires_grad
    out = terms.loss()
    assert not any(value.requires_grad for value in out.terms.values())
    assert all(value.shape == (16,) for value in out.terms.values())
    out.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_terms_for_the_log():
    point = Interpolant.between(randn(16, DIM, seed=1), 2 * randn(16, DIM), TIMES, LABELS)
    arguments = (mlp(1), point, TEACHER)
    terms = SCM(Labels(CLASSES)).evaluate(*arguments)
    loss = terms.loss()
    torch.testing.assert_close(loss.terms["log_weight"], arguments[0].log_weight(TIMES).detach())
    torch.testing.assert_close(loss.terms["residual_rms"], terms.g.norm(dim=1) / math.sqrt(DIM))
    torch.testing.assert_close(loss.terms["tangent_rms"], terms.dF.norm(dim=1) / math.sqrt(DIM))
    torch.testing.assert_close(loss.total, loss.terms["shortcut"].mean())
    plain = SCM(Labels(CLASSES), adaptive=False).evaluate(*arguments)
    assert plain.log_weight is None
    assert loss.terms.keys() - plain.loss().terms.keys() == {"log_weight"}


def test_half_precision_answers_are_lifted_before_anything_is_computed_with_them():
    class Halved(torch.nn.Module):
        weight_head = True

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, t, cond):
            return self.network(x, t, cond).bfloat16()

        def log_weight(self, t):
            return self.network.log_weight(t).bfloat16()

    x, y = randn(16, DIM).float(), randn(16, DIM, seed=1).float()
    terms = SCM(Labels(CLASSES)).evaluate(
        Halved(mlp(1).float()), Interpolant.between(y, x, TIMES.float(), LABELS), Halved(mlp(2).float())
    )
    assert all(value.dtype == torch.float32 for value in vars(terms).values())


def test_guidance_and_prediction_of_one_step_see_one_dropout_mask():
    network, null = mlp(1, dropout=0.3).train(), torch.full((16,), CLASSES)
    objective = SCM(Labels(CLASSES), DataVelocity(Guidance(2.0, 0.0), at_shortcut=True), label_dropout=0.1)
    x_1, x_0 = randn(16, DIM), randn(16, DIM, seed=1)
    terms = objective.evaluate(network, Interpolant.between(x_0, x_1, TIMES, null))
    torch.testing.assert_close(terms.v, terms.F_CM.detach() + 2.0 * (x_1 - x_0 - terms.F_CM.detach()))


# Draws and the clock


def test_a_call_draws_everything_from_the_generator():
    network, batch = mlp(1), Batch(randn(64, DIM), torch.arange(64) % CLASSES)
    objective = SCM(Labels(CLASSES), DataVelocity(Guidance()), time=Uniform(0.1, 0.9), label_dropout=0.3)
    rng = generator(5)
    x_0 = torch.randn(64, DIM, generator=rng, dtype=torch.float64)
    t = objective.time.sample(64, rng).double()
    dropped = torch.rand(64, generator=rng) < 0.3
    cond = Labels(CLASSES).drop(batch.cond, dropped)
    for ramp in (1.0, 0.2):
        expected = (
            objective.evaluate(network, Interpolant.between(x_0, batch.x_1, t, cond, dropped), ramp=ramp).loss().total
        )
        assert torch.equal(objective(network, batch, generator(5), ramp=ramp).total, expected)
    assert torch.equal(objective.at(2_048_000)(network, batch, generator(5)).total, expected)
    whole = objective(network, batch, generator(5)).total
    assert torch.equal(objective.at(10_240_000)(network, batch, generator(5), None).total, whole)


def test_a_call_asks_the_teacher_that_it_is_given():
    network, batch = mlp(1), Batch(randn(16, DIM), LABELS)
    objective = SCM(Labels(CLASSES), TeacherVelocity(Guidance()), label_dropout=0.3)
    rng = generator(5)
    point = Interpolant.draw(batch, objective.time, objective.condition, 0.3, rng)
    for clock in (objective.warmup_images // 4, objective.warmup_images):
        expected = objective.evaluate(network, point, TEACHER, objective.ramp(clock)).loss().total
        assert torch.equal(objective.at(clock)(network, batch, generator(5), TEACHER).total, expected)
    assert torch.equal(objective(network, batch, generator(5), TEACHER).total, expected)


@pytest.mark.parametrize("name", ["condition", "velocity", "task", "derivative", "draws_for_whole_step"])
def test_what_is_warmed_up_is_the_objective_in_all_else(name):
    objective = SCM(Labels(CLASSES), DataVelocity(), AuxiliaryTime(), derivative=NoGraph())
    assert objective.draws_for_whole_step
    assert getattr(objective.at(0), name) == getattr(objective, name)


def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole():
    network, batch = mlp(1), Batch(2 * randn(16, DIM), LABELS)
    objective = SCM(Labels(CLASSES), DataVelocity(Guidance(), at_shortcut=True), label_dropout=0.4)
    assert objective.draws_for_whole_step
    parameters, whole = list(network.parameters()), objective(network, batch, generator(5))
    expected, summed = torch.autograd.grad(whole.total, parameters), [0.0] * len(parameters)
    for rows in (slice(0, 3), slice(3, 16)):
        part = Batch(batch.x_1[rows], batch.cond[rows], rows.start, 16)
        found = torch.autograd.grad(objective(network, part, generator(5)).total, parameters)
        summed = [a + len(part.x_1) / 16 * b for a, b in zip(summed, found, strict=True)]
    torch.testing.assert_close(tuple(summed), expected, rtol=1e-10, atol=1e-12)


def test_the_derivative_is_warmed_up_in_proportion_to_the_images_seen():
    objective = SCM(Labels(3), warmup_images=1000)
    assert [objective.ramp(images) for images in (0, 250, 1000, 5000)] == [0.0, 0.25, 1.0, 1.0]
    assert SCM(Labels(3), warmup_images=0).ramp(0) == 1.0


def scm_run(**changes):
    from facm.data import Moons

    network = MLP(width=8, depth=1, num_classes=2, weight_head=True)
    objective = SCM(Labels(2), DataVelocity(), warmup_images=64)
    every = Intervals(log=16, checkpoint=48, ema_snapshots=0)
    run = Run(network, Moons(n=200), objective, images=96, batch_size=16, optimizer=AdamW(lr=1e-2), every=every)
    return dataclasses.replace(run, **changes)


def test_training_tells_the_objective_the_clock(tmp_path, monkeypatch):
    ramps, evaluate = [], SCM.evaluate

    def recorded(self, *arguments):
        ramps.append(arguments[-1])
        return evaluate(self, *arguments)

    monkeypatch.setattr(SCM, "evaluate", recorded)
    folder = train_in(tmp_path / "run", scm_run())
    assert ramps == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert all("log_weight" in record for record in log_of(folder))
    assert log_of(folder)[0]["log_weight"] == 0 != log_of(folder)[-1]["log_weight"]


# The learned weight, on two ranks


@dataclasses.dataclass(frozen=True)
class Awake:
    """A transformer of 4 tokens in which everything has an effect from the first step on."""

    def build(self):
        plain = dict.fromkeys(("swiglu", "rope"), False)
        options = {"num_classes": 10, "pixel_norm": True, "weight_head": True}
        network = LightningDiT(8, 4, 1, 16, 2, 2, **plain, **options).build()
        for name, p in network.named_parameters():
            if "adaLN" in name or "final_layer" in name or "logvar.1" in name:
                p.data += 0.1 * torch.randn_like(p)
        return network


def parallel_run(derivative):
    from facm.data import Noise

    objective = SCM(Labels(10), DataVelocity(), warmup_images=64, derivative=derivative)
    return scm_run(
        network=Awake(), data=Noise((1, 8, 8), num_classes=10), objective=objective, optimizer=AdamW(lr=1e-3)
    )


DERIVATIVES = {"op": OpLevel(), "whole": WholeNetwork(), "chain": Chain()}


def two_ranks(root):
    with opened(Engine(timeout_s=300)) as world:
        for engine in ("ddp", "fsdp"):
            for name, derivative in DERIVATIVES.items():
                train_in(f"{root}/{engine}-{name}", parallel_run(derivative), Engine(parallel=engine), world)
        train_in(f"{root}/parts-op", parallel_run(OpLevel()), Engine(parallel="ddp", accumulate=2), world)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scm")
    call(2, "tests.objectives.test_scm", "two_ranks", str(root))
    return root


def test_the_weight_is_computed_inside_the_forward_of_the_network_and_of_its_wrapper():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *arguments):
            return self.module(*arguments)

    network, entered = mlp(1), []
    wrapper = Wrapper(network)
    for name, module in (("network", network), ("wrapper", wrapper)):
        module.register_forward_hook(
            lambda module, args, out, name=name: entered.append((name, getattr(out, "shape", None)))
        )
    assert torch.equal(log_weight(network, TIMES), network.log_weight(TIMES))
    assert entered == [("network", (16,))]
    assert torch.equal(log_weight(wrapper, TIMES), network.log_weight(TIMES))
    assert entered[1:] == [("network", (16,)), ("wrapper", (16,))]
    SCM(Labels(CLASSES)).evaluate(wrapper, Interpolant.between(randn(16, DIM), randn(16, DIM), TIMES, LABELS), TEACHER)
    assert ("wrapper", (16,)) in entered[3:]


@pytest.mark.slow
@pytest.mark.parametrize("name", DERIVATIVES)
def test_two_ranks_learn_the_weight_that_one_does(root, tmp_path, name):
    alone = train_in(tmp_path / "one", parallel_run(DERIVATIVES[name]))
    for engine in ("ddp", "fsdp", *(["parts"] if name == "op" else [])):
        from facm.runs.folder import RunFolder

        folder = RunFolder(root / f"{engine}-{name}")
        assert difference(alone, folder) < 1e-6, engine
        for a, b in zip(log_of(alone), log_of(folder), strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5), engine


# The network's part: the head, and pixel norm

SMALL = LightningDiT(8, 4, 2, 16, 2, 2, num_classes=3)


def built(seed=0, scale=0.3, **options):
    torch.manual_seed(seed)
    network = dataclasses.replace(SMALL, **options).build()
    for p in network.parameters():
        if p.requires_grad:
            p.data += scale * torch.randn_like(p)
    return network.double()


IMAGES = (randn(3, 2, 8, 8), torch.tensor([0.1, 0.5, 0.9]).double(), torch.tensor([0, 3, 1]))


@pytest.mark.parametrize("config", [SMALL, MLP(DIM, 16, 2, CLASSES)], ids=["transformer", "mlp"])
def test_the_head_weighs_all_times_alike_at_first_and_is_no_part_of_the_network_function(config):
    t = torch.tensor([0.0, 0.3, 1.0])
    with_head, without = (dataclasses.replace(config, weight_head=on).build() for on in (True, False))
    assert torch.equal(with_head.log_weight(t), torch.zeros(3))
    assert torch.equal(log_weight(with_head, t), torch.zeros(3))
    load_strictly(with_head, without.state_dict(), "a teacher", with_head.zero_init_prefixes)
    shape = (3, DIM) if isinstance(config, MLP) else (3, 2, 8, 8)
    x, y = torch.randn(shape, generator=generator()), torch.tensor([0, 1, 2])
    assert torch.equal(with_head(x, t, y), without(x, t, y))
    with pytest.raises(CheckpointError):
        load_strictly(without, with_head.state_dict(), "a student", ())
    with pytest.raises(ValueError, match="weight_head = False, expected weight_head = True"):
        without.log_weight(t)


def test_the_head_is_the_references_by_name():
    names = set(dataclasses.replace(SMALL, weight_head=True).build().state_dict()) - set(SMALL.build().state_dict())
    embedder = {f"AdaLoss.logvar.0.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert names == embedder | {"AdaLoss.logvar.1.weight", "AdaLoss.logvar.1.bias"}


def test_pixel_norm_divides_by_the_root_mean_square():
    x = 7 * randn(4, 10)
    torch.testing.assert_close(pixel_norm(x), x / x.norm(dim=1, keepdim=True) * math.sqrt(10))
    assert torch.equal(pixel_norm(torch.zeros(2, 3)), torch.zeros(2, 3))
    half = pixel_norm(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, pixel_norm(x.to(torch.bfloat16).float()).to(torch.bfloat16))


@pytest.mark.parametrize("shift", [True, False])
def test_shift_and_scale_are_normalised_and_the_gate_is_not(shift):
    network = built(pixel_norm=True, shift=shift)
    block, last = network.blocks[0], network.final_layer
    h, c = randn(3, 4, 16), randn(3, 16, seed=1)

    def norm(x):
        return x / x.square().mean(-1, keepdim=True).sqrt()

    def modulated(x, parts):
        scale = norm(parts["scale"])[:, None]
        return x * (1 + scale) + (norm(parts["shift"])[:, None] if "shift" in parts else 0)

    names = ("shift", "scale", "gate") if shift else ("scale", "gate")
    parts = block.adaLN_modulation(c).chunk(2 * len(names), dim=1)
    first, second = (dict(zip(names, parts[i : i + len(names)], strict=True)) for i in (0, len(names)))
    expected = h + first["gate"][:, None] * block.attn(modulated(block.norm1(h), first), network.feat_rope)
    expected = expected + second["gate"][:, None] * block.mlp(modulated(block.norm2(expected), second))
    torch.testing.assert_close(block(h, c, network.feat_rope), expected, rtol=1e-6, atol=1e-6)
    final = dict(zip(("shift", "scale"), last.adaLN_modulation(c).chunk(2, dim=1), strict=True))
    torch.testing.assert_close(last(h, c), last.linear(modulated(last.norm_final(h), final)), rtol=1e-6, atol=1e-6)


def test_pixel_norm_changes_the_function_and_no_parameter():
    plain, normalised = built(), built(pixel_norm=True)
    assert plain.state_dict().keys() == normalised.state_dict().keys()
    assert not torch.allclose(plain(*IMAGES), normalised(*IMAGES))


@pytest.mark.parametrize("derivative", [OpLevel(), NoGraph(), WholeNetwork(), Chain()], ids=str)
def test_the_derivative_passes_through_pixel_norm(derivative):
    network, (x, t, y) = built(pixel_norm=True).train(), IMAGES
    v = randn(3, 2, 8, 8, seed=5)
    function = Prediction(network, ExpandedInterval().shortcut, y)
    F, dF = derivative(function, (x, t), (v, torch.ones_like(t)))
    h = 1e-6
    with torch.no_grad():
        slow = (function(x + h * v, t + h) - function(x - h * v, t - h)) / (2 * h)
    torch.testing.assert_close(dF, slow, rtol=1e-5, atol=1e-5 * slow.abs().max().item())
    torch.testing.assert_close(F, function(x, t))


@pytest.mark.parametrize("pixel", [True, False])
def test_the_collapsing_row_runs_as_well_as_the_stable_one(pixel):
    network = built(scale=0.1, pixel_norm=pixel, weight_head=True).float().train()
    objective = SCM(Labels(3), DataVelocity())
    loss = objective.at(5_120_000)(network, Batch(IMAGES[0].float(), torch.tensor([0, 2, 1])), generator())
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(p.grad.abs().sum() > 0 for p in network.parameters() if p.requires_grad)


# The definition, and what is refused


def test_defaults_and_what_it_says_about_itself():
    objective = SCM(Labels(3))
    assert objective.velocity == TeacherVelocity(Guidance(1.75, 0.125, 1.0))
    assert objective.task == ExpandedInterval()
    assert objective.time == ArctanLogNormal(-0.8, 1.6)
    assert (objective.warmup_images, objective.alpha) == (10_240_000, Cosine())
    assert (objective.normalise, objective.clamp, objective.adaptive) == (0.1, None, True)
    assert (objective.label_dropout, objective.learns_shortcut) == (0.0, True)
    assert from_json(to_json(objective)) == objective


@pytest.mark.parametrize("network", [mlp(1, weight_head=False), Exact()], ids=["without its head", "another"])
def test_a_learned_weight_needs_a_network_with_a_head(network):
    named = rf"adaptive = True .* \({type(network).__name__}\) has no head .*weight_head=True .*SCM\(adaptive=False\)"
    with pytest.raises(ValueError, match=named):
        SCM(Labels(CLASSES))(network, Batch(randn(16, DIM), LABELS), generator(), TEACHER)


def test_a_run_is_refused_before_it_starts_where_the_network_has_no_head():
    plain = MLP(width=8, depth=1, num_classes=2)
    check(scm_run())
    check(scm_run(network=plain, objective=SCM(Labels(2), DataVelocity(), adaptive=False)))
    with pytest.raises(ValueError, match="has no head for it"):
        check(scm_run(network=plain))


def test_a_weight_that_is_not_one_number_per_sample_is_an_error():
    network = mlp(1)
    network.log_weight = lambda t: torch.zeros(1, dtype=t.dtype)
    with pytest.raises(ValueError, match=r"log_weight\(t\) has shape \(1,\), expected \(16,\)"):
        SCM(Labels(CLASSES)).evaluate(
            network, Interpolant.between(randn(16, DIM), randn(16, DIM), TIMES, LABELS), TEACHER
        )


BAD = {
    "no teacher": (r"TeacherVelocity\(\) needs a teacher", {"teacher": None}),
    "one time for all": (r"t has shape \(1,\), expected \(16,\)", {"t": torch.full((1,), 0.5)}),
    "time above 1": (r"t runs over .*\[0, 1\]", {"t": TIMES + 0.5}),
    "label out of range": (r"labels run over \[0, 4\]", {"cond": LABELS * 2}),
    "no labels": ("no labels", {"cond": None}),
    "noise of another shape": (r"x_0 \(16, 1\)", {"x_0": randn(16, 1)}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_argument_is_an_error_that_names_it(case):
    named, changed = BAD[case]
    arguments = {"x_0": randn(16, DIM, seed=1), "t": TIMES, "cond": LABELS, "teacher": TEACHER} | changed
    teacher = arguments.pop("teacher")
    with pytest.raises(ValueError, match=named):
        SCM(Labels(CLASSES)).evaluate(mlp(1), Interpolant.between(x_1=randn(16, DIM), **arguments), teacher)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"warmup_images": -1}, "warmup_images = -1, expected an integer within"),
        ({"normalise": 0.0}, r"normalise = 0\.0, expected a number within .* or None"),
        ({"normalise": None, "clamp": 0.0}, r"clamp = 0\.0"),
        ({"clamp": 1.0}, r"clamp = 1\.0, expected None with normalise = 0\.1: they are alternatives"),
        ({"label_dropout": 1.0}, "label_dropout = 1.0"),
        (
            {"velocity": DataVelocity(Guidance(1.75))},
            "label_dropout = 0.0, expected a positive one",
        ),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(options, named):
    with pytest.raises(ValueError, match=named):
        SCM(Labels(3), **options)


def test_a_task_the_network_cannot_be_told_is_an_error():
    with pytest.raises(ValueError, match=r"AuxiliaryTime\(\) passes a second time r"):
        SCM(Labels(CLASSES), task=AuxiliaryTime())(mlp(1), Batch(randn(16, DIM), LABELS), generator(), TEACHER)


def test_unconditional_data_cannot_be_guided():
    with pytest.raises(ValueError, match=r"condition = Unconditional\(\), expected labels .* guidance scale = 1.75"):
        SCM(Unconditional())

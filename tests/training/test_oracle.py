"""The training loop against one written by hand: losses, clip, AdamW, averages, schedule and log from their formulas.

Nothing of the objectives, the optimiser, the averages or the loop is used here; the networks, the order of the data
and the derivation of seeds are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from facm.core.rng import derive
from facm.core.types import Loss
from facm.data import Stream
from facm.distributed.engine import Engine
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.runs.checkpoint import load
from facm.runs.config import Intervals, Run
from facm.runs.ema import PowerEMA
from facm.runs.folder import create
from facm.runs.optim import AdamW, CosineDecay
from facm.training.loop import train
from tests.training.run_parts import Untrained, flow_run, log_of

STEP = 8
STEPS = 6
NULL = 2
DROPPED = 0.25
GAMMAS = {0.1: 6.937203937601806, 0.2: 1.826213779895839}
"""EDM2's exponents of the two lengths."""


# --- the losses ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """All that is random in a step: noise x_0 (B, 2), times t (B,), and which samples are anchored or lose their label
    (B,)."""

    x_0: Tensor
    t: Tensor
    anchored: Tensor
    dropped: Tensor

    def part(self, rows: slice) -> Drawn:
        return Drawn(self.x_0[rows], self.t[rows], self.anchored[rows], self.dropped[rows])


def drawn_for_flow(rng: torch.Generator) -> Drawn:
    x_0 = torch.randn(STEP, 2, generator=rng)
    t, anchored, dropped = (torch.rand(STEP, generator=rng) for _ in range(3))
    return Drawn(x_0, t, anchored < 0.5, dropped < DROPPED)


def drawn_for_student(rng: torch.Generator) -> Drawn:
    x_0 = torch.randn(STEP, 2, generator=rng)
    sigma = torch.exp(-0.8 + 1.6 * torch.randn(STEP, generator=rng))
    dropped = torch.rand(STEP, generator=rng) < DROPPED
    return Drawn(x_0, 1 - 2 / math.pi * torch.atan(sigma), torch.zeros_like(dropped), dropped)


def l2_cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean(1) + 1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def flow_loss(network: Any, teacher: Any, x_1: Tensor, labels: Tensor, d: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
    x_t = (1 - d.t[:, None]) * d.x_0 + d.t[:, None] * x_1
    F = network(x_t, torch.where(d.anchored, 2 - d.t, d.t), torch.where(d.dropped, NULL, labels))
    loss = l2_cosine(F, x_1 - d.x_0)
    return loss, {"flow": loss}


def student_loss(network: Any, teacher: Any, x_1: Tensor, labels: Tensor, d: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
    """Algorithm 1, with guidance of 1.5 from t = 0.4 on."""
    t, cond = d.t[:, None], torch.where(d.dropped, NULL, labels)
    x_t = (1 - t) * d.x_0 + t * x_1
    with torch.no_grad():
        v_c, v_u = (teacher(x_t, d.t, c) for c in (cond, torch.full_like(cond, NULL)))
    v = torch.where(t >= 0.4, v_u + 1.5 * (v_c - v_u), v_c)
    anchor = l2_cosine(network(x_t, 2 - d.t, cond), v)
    F, dF = torch.func.jvp(lambda x, s: network(x, s, cond), (x_t, d.t), (v, torch.ones(len(d.t))))
    dF = dF.detach()
    g = F.detach() - (v + (1 - t) * dF)
    target = F.detach() - (1 - t.sqrt()) * g.clamp(-1, 1)
    e = (F - target).square().mean(1)
    shortcut = torch.cos(math.pi / 2 * d.t) * e / (e.detach() + 1e-3).sqrt()
    measured = {"tangent_rms": dF.square().mean(1).sqrt(), "clamped": (g.abs() > 1).float().mean(1)}
    return anchor + shortcut, {"anchor": anchor, "shortcut": shortcut, **measured}


# --- the loop --------------------------------------------------------------------------------------------------------


@dataclass
class ByHand:
    """What a run comes to.

    states: clock -> name in a checkpoint -> value.
    lines: the log.
    """

    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    lines: list[dict[str, float]] = field(default_factory=list)


def by_hand(run: Run, draw: Callable[..., Drawn], loss_of: Callable[..., Any], parts: int, infinite: int) -> ByHand:
    """Train ``run`` in micro-batches of STEP / ``parts``; the loss of the step at clock ``infinite`` is infinite."""
    stream, result, window = Stream(run.data.open(), run.seed, STEP), ByHand(), []
    with torch.random.fork_rng():
        torch.manual_seed(derive(run.seed, 0))
        network = run.network.build().train()
        teacher = None if run.teacher is None else run.teacher.load().eval()
        names, parameters = zip(*network.named_parameters(), strict=True)
        m, v = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        averages = {sigma: [p.detach().clone() for p in parameters] for sigma in GAMMAS}
        updates = 0
        for images in range(0, STEP * STEPS, STEP):
            batch, d = stream.at(images), draw(torch.Generator().manual_seed(derive(run.seed, 1, images)))
            found = [loss_of(network, teacher, batch.x_1[s], batch.cond[s], d.part(s)) for s in slices(parts)]
            loss = torch.cat([losses for losses, _ in found]).mean()
            gradients = torch.autograd.grad(loss, parameters)
            norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
            assert norm > 0.05  # the clip acts
            after = images + STEP
            lr = 0.01 * min(1, after / 24) * (0.1 + 0.9 * (1 + math.cos(math.pi * after / run.images)) / 2)
            if images == infinite:
                loss, norm = loss + math.inf, math.nan
            else:
                updates += 1
                for k, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                    clipped = g * 0.05 / norm
                    m[k], v[k] = 0.8 * m[k] + 0.2 * clipped, 0.95 * v[k] + 0.05 * clipped**2
                    root = (v[k] / (1 - 0.95**updates)).sqrt() + 1e-4
                    p.data = p.data - lr * 0.1 * p.data - lr * m[k] / (1 - 0.8**updates) / root
            for sigma, average in averages.items():
                beta = 0 if images == 0 else (1 - STEP / (after + STEP)) ** (GAMMAS[sigma] + 1)
                averages[sigma] = [beta * a + (1 - beta) * p.detach() for a, p in zip(average, parameters, strict=True)]
            terms = {name: torch.cat([t[name] for _, t in found]).mean().item() for name in found[0][1]}
            window.append({"loss": loss.item(), **terms, "grad_norm": norm})
            result.states[after] = dict(named(names, parameters, m, v, updates, averages))
            if after % (2 * STEP) == 0:
                means = {name: sum(step[name] for step in window) / len(window) for name in window[0]}
                result.lines.append({"images": after, **means, "lr": lr, "skipped": after // STEP - updates})
                window = []
    return result


def slices(parts: int) -> list[slice]:
    return [slice(k, k + STEP // parts) for k in range(0, STEP, STEP // parts)]


def named(
    names: tuple[str, ...], parameters: Any, m: Any, v: Any, updates: int, averages: Any
) -> Iterator[tuple[str, Tensor]]:
    for k, name in enumerate(names):
        yield f"network/{name}", parameters[k].detach().clone()
        yield f"optimizer/{k}/exp_avg", m[k].clone()
        yield f"optimizer/{k}/exp_avg_sq", v[k].clone()
        yield f"optimizer/{k}/step", torch.tensor(float(updates))
        for sigma, average in averages.items():
            yield f"ema/{sigma}/{name}", average[k].clone()


# --- the runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InfiniteAt:
    """Flow matching whose loss is infinite in one micro-batch, with the gradient that it would have had."""

    clock: int
    condition: Labels = Labels(NULL)
    draws_for_whole_step: bool = True

    def __call__(self, network: Any, batch: Any, rng: torch.Generator, teacher: Any = None) -> Loss:
        loss = FlowMatching(self.condition, label_dropout=DROPPED)(network, batch, rng)
        infinite = rng.initial_seed() == derive(0, 1, self.clock) and batch.start == 0
        return Loss(loss.total + math.inf, loss.terms) if infinite else loss


def short(**changes: Any) -> Run:
    """Six steps, with a clip that acts in each, and a line of the log after every second one, which is the first at or
    after each multiple of the interval."""
    adam = AdamW(0.01, (0.8, 0.95), 0.1, 1e-4, warmup_images=24, decay=CosineDecay(0.1), clip=0.05)
    parts = {
        "network": MLP(width=8, depth=1, num_classes=NULL),
        "images": STEP * STEPS,
        "batch_size": STEP,
        "optimizer": adam,
        "ema": PowerEMA(tuple(GAMMAS)),
        "every": Intervals(log=2 * STEP - 1, checkpoint=STEP, ema_snapshots=3 * STEP, keep=100),
    }
    return flow_run(**(parts | changes))


def check(tmp_path: Any, run: Run, expected: ByHand, parts: int) -> None:
    """``run`` comes to what was computed by hand, at every step."""
    folder = create(tmp_path / "run", run)
    assert train(run, folder, engine=Engine(accumulate=parts)).finished
    assert [int(file.stem) for file in folder.checkpoints()] == list(expected.states)
    for images, state in expected.states.items():
        saved = load(folder.checkpoint(images)).tensors
        assert {name for name in saved if name.startswith(("network/", "ema/", "optimizer/"))} == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(
                saved[name], value, rtol=2e-5, atol=1e-6, msg=lambda m, n=name, i=images: f"{n} at {i}: {m}"
            )
    for images, sigma, file in folder.ema_snapshots():
        for name, value in load(file).tensors.items():
            torch.testing.assert_close(value, expected.states[images][f"ema/{sigma}/{name}"], rtol=2e-5, atol=1e-6)
    assert sorted({images for images, _, _ in folder.ema_snapshots()}) == [3 * STEP, 6 * STEP]
    lines = [{name: value for name, value in line.items() if "_t" not in name[-3:]} for line in log_of(folder)]
    assert [list(line) for line in lines] == [list(line) for line in expected.lines]
    for found, line in zip(lines, expected.lines, strict=True):
        assert found == pytest.approx(line, rel=2e-5, nan_ok=True)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_teachers_run_is_the_loop_written_by_hand(tmp_path, parts):
    """With dropout in the network, and a step with an infinite loss and a finite gradient: only the averages go on."""
    infinite = 3 * STEP
    run = short(objective=InfiniteAt(infinite), network=MLP(width=8, depth=1, num_classes=NULL, dropout=0.2))
    expected = by_hand(run, drawn_for_flow, flow_loss, parts, infinite)
    before, skipped, after = (expected.states[n * STEP]["network/inward.weight"] for n in (3, 4, 5))
    assert torch.equal(before, skipped)
    assert not torch.equal(skipped, after)
    assert [line["skipped"] for line in expected.lines] == [0, 1, 1]
    check(tmp_path, run, expected, parts)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_students_run_is_the_loop_written_by_hand(tmp_path, parts):
    """Its teacher has dropout, which must be off; guidance acts on some samples and not on others."""
    objective = FACM(Labels(NULL), TeacherVelocity(Guidance(1.5, low=0.4)), label_dropout=DROPPED)
    teacher = Untrained(MLP(width=8, depth=1, num_classes=NULL, dropout=0.5))
    run = short(objective=objective, teacher=teacher)
    check(tmp_path, run, by_hand(run, drawn_for_student, student_loss, parts, infinite=-1), parts)


@pytest.mark.parametrize("sigma", GAMMAS)
def test_the_exponents_belong_to_the_lengths(sigma):
    gamma = GAMMAS[sigma]
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(sigma**2, rel=1e-12)

"""The training loop: what a session records, when it calls back, and what it leaves alone."""

import json
import math
import random
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from facm.core.rng import derive
from facm.core.types import Batch, Loss
from facm.data import InMemory, Stream
from facm.distributed.engine import Engine
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.networks.mlp import MLP
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.runs import log as logs
from facm.runs.checkpoint import load
from facm.runs.config import Intervals
from facm.runs.ema import decay
from facm.runs.folder import create
from facm.runs.optim import AdamW, CosineDecay
from facm.training.loop import train
from facm.training.trainer import Trainer
from tests.training.run_parts import (
    IMAGES,
    Crash,
    DrawsGlobally,
    Untrained,
    before_step,
    contents,
    crash_at,
    flow_run,
    interrupt,
    log_of,
    trained,
    whole_runs,
)


@dataclass(frozen=True)
class Holed:
    """Data with one value that is not finite."""

    def open(self):
        x = np.zeros((50, 2), np.float32)
        x[37, 1] = np.inf
        return InMemory(x, np.zeros(50, np.int64), 2, name="Holed")


def test_data_that_are_not_finite_are_named_with_their_index(tmp_path):
    run = flow_run(data=Holed())
    with pytest.raises(ValueError, match="Holed: sample 37 has non-finite values"):
        train(run, create(tmp_path / "run", run))


def test_every_session_says_from_where_and_on_what_it_ran(tmp_path):
    run = flow_run()
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(128)):
        train(run, folder)
    train(run, folder)
    sessions = [json.loads(line) for line in folder.sessions.read_text().splitlines()]
    assert [line["images"] for line in sessions] == [0, 80]
    for line in sessions:
        assert line["device"].startswith("cpu (")
        assert line["threads"] == torch.get_num_threads()
        assert line["torch"] == torch.__version__
        assert line["date"].startswith("20")


def test_the_callback_sees_the_trainer_at_every_checkpoint(tmp_path):
    run, seen = flow_run(), []
    train(
        run,
        create(tmp_path / "run", run),
        on_checkpoint=lambda trainer: seen.append((type(trainer), trainer.state.images)),
    )
    assert seen == [(Trainer, 80), (Trainer, 160), (Trainer, 240), (Trainer, 320)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_runs(tmp_path_factory.mktemp("whole"))


def test_reading_ahead_changes_nothing(whole, tmp_path):
    run, expected = whole["student"]
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(112)):  # read while the step before it is computed
        train(run, folder, engine=Engine(prefetch="yes"))
    train(run, folder, engine=Engine(prefetch="yes"))
    assert contents(folder) == expected


def test_resuming_a_finished_run_does_nothing(whole, tmp_path):
    run, expected = whole["flow"]
    folder = trained(tmp_path / "run", run)
    written = {file: file.stat().st_mtime_ns for file in (*folder.checkpoints(), *(folder.path / "ema").iterdir())}
    with before_step(lambda images: pytest.fail(f"a step at {images}")):
        outcome = train(run, folder)
    assert outcome.finished
    assert outcome.images == IMAGES
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert contents(folder) == expected


def test_a_longer_batch_than_the_rest_ends_the_run_once(tmp_path):
    """100 images in batches of 16 are seven steps, with a resume as without."""
    run = flow_run(images=100)
    expected = contents(trained(tmp_path / "whole", run))
    folder = create(tmp_path / "run", run)
    interrupt(run, folder, 96)
    assert train(run, folder).images == 112
    assert contents(folder) == expected


def test_the_callers_global_generators_are_given_back(tmp_path):
    def draws():
        return random.random(), np.random.rand(), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    trained(tmp_path / "run", flow_run(objective=DrawsGlobally()))
    assert draws() == expected


def test_a_callback_that_draws_does_not_change_the_run(whole, tmp_path):
    run, expected = whole["global draws"]
    folder = create(tmp_path / "run", run)
    train(run, folder, on_checkpoint=lambda state: (torch.rand(3), np.random.rand(), random.random()))
    assert contents(folder) == expected


def test_every_seed_gives_another_run(tmp_path):
    logs_of = [log_of(trained(tmp_path / str(seed), flow_run(seed=seed))) for seed in (0, 1)]
    assert logs_of[0] != logs_of[1]


def test_the_log_says_what_memory_and_waiting_cost(tmp_path):
    for record in logs.read(trained(tmp_path / "run", flow_run()).log):
        assert record["images_per_s"] > 0
        assert 0 <= record["data_wait"] <= 1
        if "memory_gb" in record:  # Linux
            assert 0 < record["memory_gb"] <= record["peak_memory_gb"]
    assert {"images_per_s", "data_wait"} <= record.keys() & logs.TIMED
    assert sys.platform != "linux" or {"memory_gb", "peak_memory_gb"} <= record.keys() & logs.TIMED


# --- the loop against one written by hand ----------------------------------------------------------------------------

STEP = 8
BY_HAND = AdamW(lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1, warmup_images=24, decay=CosineDecay(0.1), clip=0.05)


@dataclass(frozen=True)
class InfiniteAt:
    """Flow matching whose loss is infinite in one micro-batch, with the gradient that it would have had."""

    clock: int
    condition: Labels = Labels(2)
    draws_for_whole_step: bool = True

    def __call__(self, network, batch, rng, teacher=None):
        loss = FlowMatching(self.condition)(network, batch, rng)
        infinite = rng.initial_seed() == derive(0, 1, self.clock) and batch.start == 0
        return Loss(loss.total + math.inf, loss.terms) if infinite else loss


def short(**changes):
    """Six steps of two micro-batches, with a clip that acts in each, and a line of the log every two steps."""
    parts = {
        "network": MLP(width=8, depth=1, num_classes=2),
        "objective": InfiniteAt(3 * STEP),
        "images": 6 * STEP,
        "batch_size": STEP,
        "optimizer": BY_HAND,
        "every": Intervals(log=2 * STEP, checkpoint=STEP, ema_snapshots=0, keep=100),
    }
    return flow_run(**(parts | changes))


def by_hand(run, micro_batches=2):
    """What ``run`` comes to, with AdamW, clip, averages and schedule from their formulas: per step (weights, averages),
    and the lines of the log."""
    (beta_1, beta_2), adam = run.optimizer.betas, run.optimizer
    stream, size, steps, lines, window = Stream(run.data.open(), run.seed, run.batch_size), run.batch_size, {}, [], []
    with torch.random.fork_rng():
        torch.manual_seed(derive(run.seed, 0))
        network = run.network.build()
        teacher = run.teacher and run.teacher.load().eval()
    names, parameters = zip(*network.named_parameters(), strict=True)
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    averages = {sigma_rel: [p.detach().clone() for p in parameters] for sigma_rel in run.ema.sigma_rels}
    updates = skipped = 0
    for images in range(size, run.images + 1, size):
        batch, n = stream.at(images - size), size // micro_batches
        parts = [Batch(batch.x_1[k : k + n], batch.cond[k : k + n], start=k, of=size) for k in range(0, size, n)]
        seed = derive(run.seed, 1, images - size)
        losses = [run.objective(network, part, torch.Generator().manual_seed(seed), teacher) for part in parts]
        total = sum(loss.total for loss in losses) / micro_batches
        gradient = torch.autograd.grad(total, parameters, allow_unused=True)
        gradient = [torch.zeros_like(p) if g is None else g for g, p in zip(gradient, parameters, strict=True)]
        norm = torch.cat([g.flatten() for g in gradient]).norm().item()
        assert norm > adam.clip  # it acts
        warmup, progress = min(1, images / adam.warmup_images), images / run.images
        lr = adam.lr * warmup * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
        if math.isfinite(total.item()):
            updates += 1
            for p, g, m, v in zip(parameters, gradient, first, second, strict=True):
                clipped = g * (adam.clip / norm)
                m.mul_(beta_1).add_((1 - beta_1) * clipped)
                v.mul_(beta_2).add_((1 - beta_2) * clipped * clipped)
                change = m / (1 - beta_1**updates) / ((v / (1 - beta_2**updates)).sqrt() + adam.eps)
                p.data = p.data * (1 - lr * adam.weight_decay) - lr * change
        else:
            skipped, norm = skipped + 1, math.nan
        for sigma_rel, average in averages.items():
            beta = decay(sigma_rel, images, size)
            for a, p in zip(average, parameters, strict=True):
                a.copy_(beta * a + (1 - beta) * p.detach())
        terms = {name: torch.cat([loss.terms[name] for loss in losses]).mean().item() for name in losses[0].terms}
        window.append({"loss": total.item(), **terms, "grad_norm": norm})
        steps[images] = {f"network/{name}": p.detach().clone() for name, p in zip(names, parameters, strict=True)} | {
            f"ema/{sigma_rel}/{name}": a.clone()
            for sigma_rel, average in averages.items()
            for name, a in zip(names, average, strict=True)
        }
        if images % run.every.log == 0:
            means = {name: sum(step[name] for step in window) / len(window) for name in window[0]}
            lines.append({"images": images, **means, "lr": lr, "skipped": skipped})
            window = []
    return steps, lines


def check_by_hand(run, folder):
    steps, lines = by_hand(run)
    assert train(run, folder, engine=Engine(accumulate=2)).finished
    assert [int(file.stem) for file in folder.checkpoints()] == list(steps)
    for images, expected in steps.items():
        saved = load(folder.checkpoint(images)).tensors
        assert {name for name in saved if name.startswith(("network/", "ema/"))} == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert len(lines) == len(log_of(folder))
    for found, expected in zip(log_of(folder), lines, strict=True):
        assert list(found) == list(expected)
        assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
    return steps, lines


def test_the_loop_is_the_one_written_by_hand(tmp_path):
    """One of its steps has an infinite loss with a finite gradient: it is skipped, and only the averages go on."""
    steps, lines = check_by_hand(short(), create(tmp_path / "run", short()))
    before, skipped, after = (steps[n * STEP]["network/inward.weight"] for n in (3, 4, 5))
    assert torch.equal(before, skipped)
    assert not torch.equal(skipped, after)
    assert [line["skipped"] for line in lines] == [0, 1, 1]
    assert [math.isfinite(line["loss"]) for line in lines] == [True, False, True]


def test_the_loop_of_a_student_is_the_one_written_by_hand(tmp_path):
    """Its teacher has dropout, which must be off."""
    teacher = Untrained(MLP(width=8, depth=1, num_classes=2, dropout=0.5))
    run = short(objective=FACM(Labels(2), TeacherVelocity(Guidance(1.5))), teacher=teacher)
    _, lines = check_by_hand(run, create(tmp_path / "run", run))
    assert {"anchor", "shortcut", "tangent_rms", "clamped"} < lines[0].keys()

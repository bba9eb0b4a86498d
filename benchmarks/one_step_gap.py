"""Ideas that could bring one step nearer to the teacher, all as a second stage of the same students.

    facm demo --out demo
    python benchmarks/one_step_gap.py --teacher demo/teacher --students demo/student --json gap.jsonl

Every arm starts from the weights of a finished student, trains for the same number of forward-equivalents on the same
batches, with the same optimiser, and is measured on the same noise: arms of one student are pairs. A forward pass
counts 1, with its backward pass 3, a tangent beside a forward pass 2 more; a teacher and an average have no backward.
Rows that the file has already are not made again, so that it goes on where it stopped.

facm            the objective as it was: what more of the same brings
low-rate        the same at a quarter of the learning rate
trajectories    x_t on the teacher's own trajectories from noise (four Euler steps), in place of data and noise
own-samples     x_1 is the student's one-step sample of other noise, in place of data
own-half        the same in half of the batch
averaged        the shortcut's target, F and dF/dt, from the running average of the student (as CT's and TRACT's target)
loss-aware      times by their error per bin: 16 bins, the rms of (1 - t) (F - v_bar), in place of Eq. 20
endpoint        a quarter of the batch besides: one step from noise is drawn to the teacher's end of 8 steps of Heun's
matching        a quarter of the batch besides: DMD's gradient on one-step samples, whose flow a teacher's copy learns
half-anchor     the anchor's loss on half of the batch
quarter-anchor  the same on a quarter
half-shortcut   the shortcut's loss on half of the batch
reused          points, noise and the teacher's velocities of a step serve the next one, too
a+b             both at once

benchmarks/cheaper.py trains whole students with these.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facm.core.rng import derive
from facm.data import Digits
from facm.derivative import OpLevel, Prediction
from facm.evaluation import Identity, Sampling, build_evaluator
from facm.evaluation.evaluate import evaluate
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.times import ArctanLogNormal
from facm.flow.velocity import TeacherVelocity
from facm.objectives.consistency_target import shortcut_target
from facm.objectives.facm import FACM
from facm.pretrained.trained import Trained, load_trained
from facm.sampling.methods import Consistency, FlowThenJump, Heun
from facm.sampling.solvers import heun

BATCH, CLASSES, BINS = 128, 10, 16
EXTRA = {  # forward-equivalents a sample: the teacher's velocity 1, the anchor 3, the shortcut 3 and its tangent 2
    "facm": 0.0,
    "low-rate": 0.0,
    "trajectories": 4.0,
    "own-samples": 1.0,
    "own-half": 0.5,
    "averaged": 1.0,  # the average's pass is one more
    "loss-aware": 0.0,
    "endpoint": (3 + 15) / 4,
    "matching": (3 + 2 + 3) / 4,
    "half-anchor": -3 / 2,
    "quarter-anchor": -3 * 3 / 4,
    "half-shortcut": -5 / 2,
    "reused": -1 / 2,
}

SECOND_STAGE = list(EXTRA)[:9]


def cost(arm: str) -> float:
    """Forward-equivalents a sample: 9 of the objective as it was, and what the ideas add."""
    return 9.0 + sum(EXTRA[idea] for idea in arm.split("+"))


OBJECTIVE = FACM(Labels(CLASSES), TeacherVelocity(Guidance(1.0)))
SEED_OF_EVALUATION = 1


@dataclass
class Bench:
    """One arm while it trains.

    network, average: the student and its running average. teacher: frozen. fake: learns the velocity of the student's
    samples. errors: the running mean squared error of each bin of times. kept: the points and velocities of the last
    step where this one is to use them again.
    """

    arm: str
    network: nn.Module
    average: nn.Module
    teacher: nn.Module
    fake: nn.Module
    fake_optimizer: torch.optim.Optimizer
    errors: Tensor
    rng: torch.Generator
    kept: tuple[Interpolant, Tensor] | None = None

    @property
    def ideas(self) -> list[str]:
        return self.arm.split("+")

    def noise(self, n: int, like: Tensor) -> Tensor:
        return torch.randn((n, *like.shape[1:]), generator=self.rng)

    def one_step(self, z: Tensor, cond: Tensor, network: nn.Module | None = None) -> Tensor:
        at = OBJECTIVE.task.shortcut(torch.zeros(len(z)))
        return z + (network or self.network)(z, cond=cond, **at)

    def point(self, x_1: Tensor, cond: Tensor) -> Interpolant:
        n, x_0 = len(x_1), self.noise(len(x_1), x_1)
        t = ArctanLogNormal(-0.8, 1.6).sample(n, self.rng)
        if "loss-aware" in self.ideas:
            bins = torch.multinomial(self.errors.sqrt(), n, True, generator=self.rng)
            t = (bins + torch.rand(n, generator=self.rng)) / BINS
        if own := n if "own-samples" in self.ideas else n // 2 if "own-half" in self.ideas else 0:
            with torch.no_grad():
                x_1 = torch.cat([self.one_step(self.noise(own, x_1), cond[:own]), x_1[own:]])
        if "trajectories" in self.ideas:
            x_t = x_0
            for k in range(4):  # each sample's own way to its t, in four equal steps
                with torch.no_grad():
                    x_t = x_t + (t / 4)[:, None, None, None] * self.teacher(x_t, t * k / 4, cond=cond)
            return Interpolant(x_0, x_1, t, x_t, cond, None)
        return Interpolant.between(x_0, x_1, t, cond)

    def loss(self, x_1: Tensor, cond: Tensor) -> Tensor:
        if self.kept is not None:
            (p, v), self.kept = self.kept, None
        else:
            p = self.point(x_1, cond)
            v = OBJECTIVE.velocity(self.network, self.teacher, p, OBJECTIVE.condition, OBJECTIVE.task)
            self.kept = (p, v) if "reused" in self.ideas else None
        some = len(v) // (2 if "half-anchor" in self.ideas else 4 if "quarter-anchor" in self.ideas else 1)
        F_FM = Prediction(self.network, OBJECTIVE.task.anchor, p.cond[:some])(p.x_t[:some], p.t[:some])
        total = OBJECTIVE.anchor(F_FM, v[:some]).mean()
        if "half-shortcut" in self.ideas:
            half = len(v) // 2
            p, v = Interpolant(p.x_0[half:], p.x_1[half:], p.t[half:], p.x_t[half:], p.cond[half:], None), v[half:]
        F = Prediction(self.network, OBJECTIVE.task.shortcut, p.cond)
        F_tar = F
        if "averaged" in self.ideas:
            F_tar = Prediction(self.average, OBJECTIVE.task.shortcut, p.cond)
            with torch.no_grad():
                F_ema, dF = OpLevel()(F_tar, (p.x_t, p.t), (v, torch.ones_like(p.t)))
            F_CM, base = F(p.x_t, p.t), F_ema
        else:
            F_CM, dF = OpLevel()(F, (p.x_t, p.t), (v, torch.ones_like(p.t)))
            base = F_CM
        target = shortcut_target(base, dF, v, 1 - p.t, OBJECTIVE.alpha(p.t), OBJECTIVE.clamp)
        total = total + (OBJECTIVE.beta(p.t) * OBJECTIVE.shortcut(F_CM, target.v_tar)).mean()
        if "loss-aware" in self.ideas:
            with torch.no_grad():
                error = ((1 - p.t)[:, None] * target.g.flatten(1)).square().mean(1)
                bins = (p.t * BINS).long().clamp(max=BINS - 1)
                for k in bins.unique():
                    self.errors[k] += 0.05 * (error[bins == k].mean() - self.errors[k])
        if "endpoint" in self.ideas:
            total = total + self._endpoint(x_1[: BATCH // 4], cond[: BATCH // 4])
        if "matching" in self.ideas:
            total = total + self._matching(x_1[: BATCH // 4], cond[: BATCH // 4])
        return total

    def _endpoint(self, like: Tensor, cond: Tensor) -> Tensor:
        z = self.noise(len(like), like)
        with torch.no_grad():
            end = heun(lambda x, t: self.teacher(x, t, cond=cond), z, [k / 8 for k in range(8)])
        return OBJECTIVE.shortcut(self.one_step(z, cond) - z, end - z).mean()

    def _matching(self, like: Tensor, cond: Tensor) -> Tensor:
        """DMD (arXiv 2311.18828, Eq. 7-8): the samples follow the real minus the fake prediction of the data."""
        x = self.one_step(self.noise(len(like), like), cond)
        t = 0.02 + 0.96 * torch.rand(len(x), generator=self.rng)
        left = (1 - t)[:, None, None, None]
        eps = self.noise(len(like), like)
        with torch.no_grad():
            x_t = left * eps + (1 - left) * x
            real, fake = (f(x_t, t, cond=cond) for f in (self.teacher, self.fake))
            off = left * (fake - real)
            scale = (x - (x_t + left * real)).abs().mean((1, 2, 3), keepdim=True)
            towards = x - off / (scale + 1e-3)
        self.fake_optimizer.zero_grad()
        x_t = left * eps + (1 - left) * x.detach()
        (self.fake(x_t, t, cond=cond) - (x.detach() - eps)).square().mean().backward()
        self.fake_optimizer.step()
        return 0.1 * (x - towards).square().mean()


def window_of_100(step: int) -> float:
    """The decay of a running average of some 100 steps, fewer at first."""
    return min(0.99, step / (step + 9))


def trained_by(
    arm: str,
    student: Trained,
    teacher: nn.Module,
    budget: float,
    rate: float,
    decay: Callable[[int], float] = window_of_100,
    seed: int = 7,
) -> tuple[Trained, int]:
    """The running average of the student after the arm's training, and the images that it saw.

    budget: forward-equivalents of samples. decay: of the running average after each step, from 1 on. seed: of the
    batches and the noise.
    """
    network = copy.deepcopy(student.network).train().requires_grad_(True)
    fake = copy.deepcopy(teacher).train().requires_grad_(True)
    bench = Bench(
        arm,
        network,
        copy.deepcopy(student.network),
        teacher,
        fake,
        torch.optim.AdamW(fake.parameters(), 1e-3, weight_decay=0),
        torch.ones(BINS),
        torch.Generator().manual_seed(derive(seed, 0)),
    )
    rate = rate / 4 if "low-rate" in bench.ideas else rate
    optimizer = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.999), weight_decay=0)
    steps = int(budget / cost(arm) / BATCH)
    dataset, order = Digits().open(), np.random.default_rng(seed)
    for step in range(steps):
        batch = dataset.read(order.integers(0, len(dataset), BATCH))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        optimizer.zero_grad()
        bench.loss(batch.x_1, batch.cond).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for a, b in zip(bench.average.parameters(), network.parameters(), strict=True):
                a.lerp_(b, 1 - decay(step + 1))
    return replace(student, network=bench.average.eval().requires_grad_(False)), steps * BATCH


def measured(trained: Trained, methods: dict[str, Any], evaluators: dict[str, Any], n: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, method in methods.items():
        sampling = Sampling(method, n, SEED_OF_EVALUATION)
        for space, evaluator in evaluators.items():
            found = evaluate(trained, sampling, evaluator).measurement
            row[f"{name}/{space}"] = found.frechet_distance
            if space == "classifier":
                row |= {f"{name}/{k}": getattr(found, k) for k in ("precision", "recall", "accuracy")}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="run of digits-teacher")
    parser.add_argument("--students", type=Path, nargs="+", required=True, help="runs of digits-student, one a seed")
    parser.add_argument("--arms", nargs="+", default=SECOND_STAGE, help="ideas, or several of them as a+b")
    parser.add_argument("--images", type=int, default=25_600, help="of the arm facm; others have as much compute")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--n", type=int, default=2_000)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    if unknown := {idea for arm in arguments.arms for idea in arm.split("+")} - EXTRA.keys():
        parser.error(f"--arms: {', '.join(sorted(unknown))}, expected among {', '.join(EXTRA)}")
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in arguments.json.read_text().splitlines()] if arguments.json.exists() else []
    have = {(row["seed"], row["arm"]) for row in rows}
    data = Digits().open()
    evaluators = {
        "classifier": build_evaluator(data, torch.device("cpu")),
        "pixels": build_evaluator(data, torch.device("cpu"), Identity()),
    }
    teacher = load_trained(arguments.teacher)

    def put(seed: int, arm: str, make: Callable[[], dict[str, Any]]) -> None:
        if (seed, arm) in have:
            return
        began = time.process_time()
        row = {"seed": seed, "arm": arm, "n": arguments.n, **make(), "cpu_s": round(time.process_time() - began, 1)}
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
        print(line, flush=True)
        with arguments.json.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    few = {"1": Consistency(1), "3": FlowThenJump(3)}
    put(-1, "teacher", lambda: measured(teacher, {"31": Heun(31)}, evaluators, arguments.n))
    for arm in ("before", *arguments.arms):
        for seed, path in enumerate(arguments.students):
            student = load_trained(path)

            def make(arm: str = arm, student: Trained = student) -> dict[str, Any]:
                if arm == "before":
                    return measured(student, few, evaluators, arguments.n)
                budget = arguments.images * cost("facm")
                after, images = trained_by(arm, student, teacher.network, budget, arguments.rate)
                return {"images": images, **measured(after, few, evaluators, arguments.n)}

            put(seed, arm, make)


if __name__ == "__main__":
    main()

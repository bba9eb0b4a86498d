"""Students of one phase and of several on a 2-D toy of which the flow is known, and what a bound costs.

    python benchmarks/phases.py --seeds 0 1 2 --json results/phases.jsonl
    python benchmarks/phases.py --students A --steps 2000 --json results/phases.jsonl

Data are eight Gaussians on a circle, and the teacher is their exact marginal velocity, which is also what a pair of
perfect experts would give. A perceptron learns that flow, at c_CM and at c_FM, and each student starts from it:

A          jumps to 1 from all times
B          two networks: one of [0, b] jumps to b, one of [b, 1] to 1
phased     one network, several phases
naive      two networks, and that of [0, b] jumps to 1, too: the consistency identity has no boundary condition there
progress   weights alpha and beta at (t - begin) / (end - begin), as the package has them; else at t / end

All students of all seeds are trained at once, a stack of networks that share nothing but the samples of their seed.
sw2 is 1000 times the sliced 2-Wasserstein distance of --n samples to --n others of the data; floor: of the data's own.
map is the root mean square distance to where the exact flow takes the same noise, with a step for each phase.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.types import VelocityField
from facm.derivative import Prediction
from facm.flow import Phases, Uniform
from facm.flow.conditions import Unconditional
from facm.flow.guidance import NO_GUIDANCE
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import ExpandedInterval
from facm.flow.velocity import TeacherVelocity
from facm.networks.mlp import embedded
from facm.objectives.facm import FACM
from facm.sampling.solvers import consistency, euler, phased, phased_times, spread_over_phases, uniform_times

MODES, STD = 8, 0.15
CENTRES = 1.3 * torch.tensor([(math.cos(a), math.sin(a)) for a in torch.arange(MODES) * 2 * math.pi / MODES])
TASK = ExpandedInterval()
PLAIN = FACM(Unconditional(), TeacherVelocity(NO_GUIDANCE), TASK, Uniform())


@dataclass(frozen=True)
class Student:
    """A student, or one half of a pair: it is trained from its first bound to the last."""

    bounds: tuple[float, ...] = (0.0, 1.0)
    by_progress: bool = False
    """Weights at the share of the phase that has passed."""
    jumps_to_1: bool = False
    """Naively, whatever the bounds."""

    @property
    def ends(self) -> tuple[float, ...]:
        return (1.0,) * (len(self.bounds) - 1) if self.jumps_to_1 else self.bounds[1:]


@dataclass(frozen=True)
class Method:
    """How a student is sampled: the keys of its networks, and the phases that it goes through."""

    networks: tuple[str, ...]
    bounds: tuple[float, ...] = (0.0, 1.0)


TWO, FOUR = (0.0, 0.5, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)
STUDENTS = {
    "A": Student(),
    "high .125": Student((0.0, 0.125)),
    "low .125": Student((0.125, 1.0)),
    "low .125, progress": Student((0.125, 1.0), by_progress=True),
    "high .5": Student((0.0, 0.5)),
    "low .5": Student((0.5, 1.0)),
    "low .5, progress": Student((0.5, 1.0), by_progress=True),
    "naive .125": Student((0.0, 0.125), jumps_to_1=True),
    "phased 2": Student(TWO),
    "phased 2, progress": Student(TWO, by_progress=True),
    "phased 4": Student(FOUR),
    "phased 4, progress": Student(FOUR, by_progress=True),
}
METHODS = {
    "A": Method(("A",)),
    "B, b = 0.125": Method(("high .125", "low .125"), (0.0, 0.125, 1.0)),
    "B, b = 0.125, progress": Method(("high .125", "low .125, progress"), (0.0, 0.125, 1.0)),
    "B, b = 0.5": Method(("high .5", "low .5"), TWO),
    "B, b = 0.5, progress": Method(("high .5", "low .5, progress"), TWO),
    "phased 2": Method(("phased 2",), TWO),
    "phased 2, progress": Method(("phased 2, progress",), TWO),
    "phased 4": Method(("phased 4",), FOUR),
    "phased 4, progress": Method(("phased 4, progress",), FOUR),
}


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[x_1 - x_0 | x_t = x] of the data, x (B, 2), t (B,)."""
    t = t[:, None]
    variance = (1 - t) ** 2 + (t * STD) ** 2
    away = x[:, None] - t[:, None] * CENTRES.to(x)
    share = (-away.square().sum(2) / (2 * variance)).softmax(1)[:, :, None]
    each = CENTRES.to(x) + ((t * STD**2 - (1 - t)) / variance)[:, None] * away
    return (share * each).sum(1)


def data(n: int, rng: torch.Generator) -> Tensor:
    return CENTRES[torch.randint(MODES, (n,), generator=rng)] + STD * torch.randn(n, 2, generator=rng)


def flowed(x: Tensor, steps: int = 200) -> Tensor:
    """Where the exact flow takes noise x, by the classical Runge-Kutta method in float64."""
    x, h = x.double(), 1 / steps
    for i in range(steps):
        t = torch.full((len(x),), i * h, dtype=x.dtype)
        k_1 = velocity(x, t)
        k_2 = velocity(x + h / 2 * k_1, t + h / 2)
        k_3 = velocity(x + h / 2 * k_2, t + h / 2)
        k_4 = velocity(x + h * k_3, t + h)
        x = x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return x.float()


def sliced(a: Tensor, b: Tensor, directions: int = 128) -> float:
    """1000 times the sliced 2-Wasserstein distance of samples a, b (n, 2)."""
    angle = torch.arange(directions) * math.pi / directions
    along = torch.stack([angle.cos(), angle.sin()])
    gap = (a.float() @ along).sort(0).values - (b.float() @ along).sort(0).values
    return 1000 * float(gap.square().mean().sqrt())


class Teacher(nn.Module):
    auxiliary_time = False

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return velocity(x, t)


class Stack(nn.Module):
    """K perceptrons with residual layers that share nothing: rows of x (K B, 2) and t (K B,), network by network."""

    auxiliary_time = False

    def __init__(self, *seeds: int, width: int, depth: int = 3) -> None:
        super().__init__()
        sizes = [(7, width), *[(width, width)] * 2 * depth, (width, 2)]
        drawn = [[nn.Linear(*size) for size in sizes] for seed in seeds if torch.manual_seed(seed)]
        layers = list(zip(*drawn, strict=True))
        self.weights = nn.ParameterList([torch.stack([one.weight.detach().T for one in each]) for each in layers])
        self.biases = nn.ParameterList([torch.stack([one.bias.detach()[None] for one in each]) for each in layers])

    def pick(self, which: Sequence[int]) -> Stack:
        """Copies of the networks of these numbers, any of them more than once."""
        other = Stack(width=0)
        other.weights = nn.ParameterList([weight.detach()[list(which)].clone() for weight in self.weights])
        other.biases = nn.ParameterList([bias.detach()[list(which)].clone() for bias in self.biases])
        return other

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        def layer(i: int, h: Tensor) -> Tensor:
            return torch.bmm(h, self.weights[i]) + self.biases[i]

        h = layer(0, torch.cat([x, embedded(t)], 1).unflatten(0, (len(self.weights[0]), -1)))
        for i in range(1, len(self.weights) - 1, 2):
            inner = layer(i, nn.functional.silu(h))
            h = h + layer(i + 1, nn.functional.silu(inner))
        return layer(-1, nn.functional.silu(h)).flatten(0, 1)


class OfEachRow(Phases):
    """Phases of a batch in which each row has its own student's."""

    def __init__(self, begins: Tensor, ends: Tensor) -> None:
        super().__init__()
        object.__setattr__(self, "tables", (begins, ends))

    def both(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where the phase of each time (B,) begins and ends."""
        begins, ends = self.tables  # type: ignore[attr-defined]
        k = (t[:, None] >= begins).sum(1, keepdim=True).clamp(min=1) - 1
        return begins.gather(1, k)[:, 0], ends.gather(1, k)[:, 0]

    def end(self, t: Tensor) -> Tensor:
        return self.both(t)[1]

    def progress(self, t: Tensor) -> Tensor:
        begin, end = self.both(t)
        return (t - begin) / (end - begin)


def table(rows: Sequence[tuple[float, ...]], repeats: int) -> Tensor:
    """rows (K, P), those that are shorter filled up with what no time reaches, each ``repeats`` times."""
    most = max(map(len, rows))
    return torch.tensor([(*row, *(math.inf,) * (most - len(row))) for row in rows]).repeat_interleave(repeats, 0)


def fit(network: Stack, loss: Callable[[int], Tensor], steps: int) -> float:
    """Train by Adam with a rate that falls to 0; returns CPU seconds."""
    began, optimizer = time.process_time(), torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps)
        optimizer.zero_grad()
        # A sum over networks of means over samples: each has the gradient that it would have alone.
        (loss(step) * len(network.weights[0])).backward()
        optimizer.step()
    return round(time.process_time() - began, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights, data and noise")
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=STUDENTS, metavar="NAME")
    parser.add_argument("--steps", type=int, default=1000, help="of each student")
    parser.add_argument("--flow-steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=160, help="samples of each student")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--n", type=int, default=20_000, help="samples that are measured")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    options = parser.parse_args()
    names, seeds, b = options.students, options.seeds, options.batch

    rng = torch.Generator().manual_seed(1234)
    noise, truth = torch.randn(options.n, 2, generator=rng), data(options.n, rng)
    exact = flowed(noise)

    def row(seed: int | None, name: str, nfe: int, x: Tensor, one_each: bool = False, **more: Any) -> None:
        found = {"seed": seed, "name": name, "nfe": nfe, "sw2": round(sliced(x, truth), 2)}
        if one_each:
            found["map"] = round(float((x - exact).square().sum(1).mean().sqrt()), 4)
        found |= more
        print(json.dumps(found), flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(found) + "\n")

    settings = {name: getattr(options, name) for name in ("steps", "flow_steps", "batch", "width", "n")}
    hardware = {"hardware": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {"threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    row(None, "floor", 0, data(options.n, rng), **settings, **hardware, **versions)
    for nfe in (64, 8, 4, 2, 1):
        row(None, "exact velocity, Euler", nfe, euler(velocity, noise, uniform_times(nfe)), one_each=True)

    def pairs(salt: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise, data and times in [0, 1] of each seed, (S, B, ...)."""
        drawn = []
        for seed in seeds:
            rng = torch.Generator().manual_seed((2 * seed + salt) * 1_000_000 + step)
            drawn.append((torch.randn(b, 2, generator=rng), data(b, rng), torch.rand(b, generator=rng)))
        x_0, x_1, t = map(torch.stack, zip(*drawn, strict=True))
        return x_0, x_1, t

    flows = Stack(*seeds, width=options.width)

    def flow_loss(step: int) -> Tensor:
        point = Interpolant.between(*(each.flatten(0, 1) for each in pairs(0, step)))
        at = torch.where(torch.arange(len(point.t)) % 2 == 0, point.t, 2 - point.t)
        return PLAIN.anchor(flows(point.x_t, at), velocity(point.x_t, point.t)).mean()

    cpu = fit(flows, flow_loss, options.flow_steps)
    print(f"flows: {cpu} CPU s", flush=True)

    def field(network: Stack, head: Any = TASK.shortcut) -> VelocityField:
        return torch.no_grad()(Prediction(network, head, None))

    for i, seed in enumerate(seeds):
        row(seed, "flow", 64, euler(field(flows.pick([i]), TASK.anchor), noise, uniform_times(64)), one_each=True)

    stack = flows.pick([i for i in range(len(seeds)) for _ in names])
    kinds = [STUDENTS[name] for _ in seeds for name in names]
    phases = OfEachRow(table([kind.bounds[:-1] for kind in kinds], b), table([kind.ends for kind in kinds], b))
    low, high = (torch.tensor([kind.bounds[k] for kind in kinds]).repeat_interleave(b) for k in (0, -1))
    by_progress = torch.tensor([kind.by_progress for kind in kinds]).repeat_interleave(b)
    objective, teacher = replace(PLAIN, phases=phases), Teacher()

    def loss(step: int) -> Tensor:
        x_0, x_1, u = (each.repeat_interleave(len(names), 0).flatten(0, 1) for each in pairs(1, step))
        point = Interpolant.between(x_0, x_1, low + (high - low) * u)
        terms = objective.evaluate(stack, point, teacher)
        _, end = phases.both(point.t)
        s = point.t / end
        v_tar = terms.F_CM.detach() - objective.alpha(s)[:, None] * terms.g.clamp(-1, 1)
        other = objective.beta(s) * objective.shortcut(terms.F_CM, v_tar)
        return (terms.L_FM + torch.where(by_progress, terms.L_CM, other)).mean()

    cpu = fit(stack, loss, options.steps)
    print(f"{len(kinds)} students: {cpu} CPU s", flush=True)

    def fresh(i: int) -> Tensor:
        return torch.randn(noise.shape, generator=torch.Generator().manual_seed(10_000 + i))

    for i, seed in enumerate(seeds):
        fields = {name: field(stack.pick([i * len(names) + k])) for k, name in enumerate(names)}

        def routed(keys: Sequence[str], bounds: Sequence[float], fields: dict[str, Any] = fields) -> VelocityField:
            """The average velocity of the network whose interval a time is in; of the only one at all times."""

            def ask(x: Tensor, t: Tensor) -> Tensor:
                k = sum(float(t[0]) > bound - 1e-6 for bound in bounds[1:-1])
                asked: Tensor = fields[keys[k if len(keys) > 1 else 0]](x, t)
                return asked

            return ask

        for name, method in METHODS.items():
            if not set(method.networks) <= fields.keys():
                continue
            F, needed = routed(method.networks, method.bounds), len(method.bounds) - 1
            for nfe in (1, 2, 4, 8):
                if nfe >= needed:
                    times = phased_times(spread_over_phases(nfe, needed), method.bounds)
                    made = phased(F, noise, times, method.bounds, fresh)
                    row(seed, name, nfe, made, nfe == needed, steps=options.steps)
        if {"naive .125", "low .125"} <= fields.keys():
            F = routed(("naive .125", "low .125"), (0.0, 0.125, 1.0))
            for times in ([0.0], [0.0, 0.125]):
                made = consistency(F, noise, times, fresh)
                row(seed, "naive, b = 0.125", len(times), made, len(times) == 1, steps=options.steps)


if __name__ == "__main__":
    main()

"""Algorithm 1 written out slowly, sample by sample, with finite differences and no code of the package, and its exact
solution: for FACM and for plain continuous consistency."""

import math
from functools import partial

import torch

from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.flow.weighting import Cosine, One, OneMinusPower
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.facm import FACM
from tests.core.core_parts import randn
from tests.objectives import objective_parts
from tests.objectives.objective_parts import CLASSES, DIM, LABELS, TIMES, M, S, instantaneous, spread

mlp = partial(objective_parts.mlp, scale=1.5)  # some |g| exceed 1, so that the clamp matters
TEACHER = mlp(2)


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


TASKS = [ExpandedInterval(), AuxiliaryTime()]


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
TABLE_4 = [
    (One(), lambda s: 1.0, One(), lambda s: 1.0),
    (One(), lambda s: 1.0, Cosine(), lambda s: math.cos(math.pi * s / 2)),
    (OneMinusPower(0.5), lambda s: 1 - s**0.5, One(), lambda s: 1.0),
    (OneMinusPower(1.0), lambda s: 1 - s, Cosine(), lambda s: math.cos(math.pi * s / 2)),
    (OneMinusPower(2.0), lambda s: 1 - s * s, OneMinusPower(0.5), lambda s: 1 - s**0.5),
    (OneMinusPower(0.5), lambda s: 1 - s**0.5, OneMinusPower(1.0), lambda s: 1 - s),
]

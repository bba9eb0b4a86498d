"""The size of the tangent dF/dt along the flow, how much of the residual is clamped, and which frequencies of time
carry it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from facm.api.checkup.finding import Finding
from facm.api.checkup.subject import Subject, relative, rms
from facm.core.cond import Cond, repeated, taken
from facm.core.objective import as_objective
from facm.derivative import ForwardModeError, OpLevel, Prediction
from facm.flow.time_conditioning import ExpandedInterval
from facm.objectives.facm import FACM
from facm.training.runaway import CLAMPED

TIMES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
USUAL = 0.15
"""Clamped share of networks that learned well, at most."""
POINTS = 1024
LOW, HIGH = 0.25, 0.75
"""Times between which the output is followed for its frequencies, at POINTS times."""
FAST = 100.0
"""Radians per unit of t above which a frequency is of no use to a flow: it turns round 16 times from noise to data."""
AT_ONCE = 64


@dataclass(frozen=True)
class Tangents:
    """At each of TIMES, root mean squares over a batch.

    F, dF: the output and its total derivative. by_time: the part of dF that is d output / d t at a fixed x.
    clamped: share of the elements of the residual g that are beyond the clamp.
    """

    F: tuple[float, ...]
    dF: tuple[float, ...]
    by_time: tuple[float, ...]
    clamped: tuple[float, ...]


def tangents(subject: Subject) -> Tangents:
    """Of the network as a student begins. Raises ForwardModeError where it has no forward-mode derivative."""
    network, cond, rows = subject.copy(), subject.batch.cond, list[tuple[float, float, float, float]]()
    objective = subject.run.objective if subject.run is not None else None
    clamp = (objective.clamp if isinstance(objective, FACM) else 1.0) or math.inf
    function = subject.shortcut(cond, network)
    for at in TIMES:
        x_t, t = subject.point(at)
        with torch.no_grad():
            v = subject.flow(cond, network)(x_t, t)  # what a perfect teacher is asked for
            F, dF = OpLevel()(function, (x_t, t), (v, torch.ones_like(t)))
            _, by_time = OpLevel()(function, (x_t, t), (torch.zeros_like(v), torch.ones_like(t)))
        g = F - (v + (1 - at) * dF)  # Eq. 11
        rows.append((float(rms(F)), float(rms(dF)), float(rms(by_time)), float((g.abs() > clamp).float().mean())))
    return Tangents(*(tuple(column) for column in zip(*rows, strict=True)))


def tangent_found(subject: Subject) -> list[Finding]:
    """Findings about the clamped share, the sensitivity to time, and the times of the anchor."""
    try:
        found = tangents(subject)
    except ForwardModeError:
        return [Finding("tangent", "note", "unknown, for there is no derivative: see the line on forward mode")]
    share = sum(found.clamped) / len(found.clamped)
    listed = ", ".join(f"{c:.2f} at t = {t:g}" for t, c in zip(TIMES, found.clamped, strict=True))
    said = f"{share:.2f} of the residual's elements are clamped ({listed})"
    ratios = [by_time / max(F, 1e-12) for by_time, F in zip(found.by_time, found.F, strict=True)]
    sizes = ", ".join(f"{ratio:.2g} at t = {t:g}" for t, ratio in zip(TIMES, ratios, strict=True))
    frequencies = spectrum(subject)
    of_time = "above" if frequencies.fast >= 0.5 else "below"
    carried = (
        f"most of |d output / d t|^2 is {of_time} {FAST:g} radians per unit of t: half below {frequencies.median:.3g}, "
        f"90 % below {frequencies.ninety:.3g}"
    )
    runs_away = share > CLAMPED
    remedy = _remedy(subject) if share > USUAL and frequencies.fast >= 0.5 else ""
    dead = max(found.by_time) < 1e-6 * max(found.F)
    return [
        Finding(
            "clamped",
            "wrong" if runs_away else "note" if share > USUAL else "good",
            said,
            (remedy or "lr=3e-5  # and the log's `clamped` watched: it has to fall") if runs_away else "",
        ),
        Finding(
            "time",
            "wrong" if dead else "good",
            f"|d output / d t| / |output|: {sizes}",
            "the time embedding of t as a float  # a time that is rounded or cast to integers has no derivative"
            if dead
            else "",
        ),
        Finding("frequencies", "note" if remedy else "good", carried, remedy),
        _anchor(subject),
    ]


def _remedy(subject: Subject) -> str:
    if subject.name.endswith(("(pipeline)",)):
        return f"facm distill MODEL --data DATA --smooth {FAST:g}  # --probe tries several"
    return (
        f"frequencies = frequencies[frequencies < {FAST:g}]  # in the time embedding, in radians per unit of t from "
        "noise to data; then train the teacher on a little"
    )


@dataclass(frozen=True)
class Spectrum:
    """The frequencies of t, in radians per unit, that carry |d output / d t|^2 at a fixed x.

    median, ninety: half of it, and 90 %, is below. fast: share above FAST.
    """

    median: float
    ninety: float
    fast: float


@torch.no_grad()
def spectrum(subject: Subject) -> Spectrum:
    """Followed at one sample between LOW and HIGH; frequencies up to pi (POINTS - 1) / (HIGH - LOW) are seen."""
    x, _ = subject.point((LOW + HIGH) / 2, 1)
    grid = torch.linspace(LOW, HIGH, POINTS, device=x.device, dtype=torch.float64)
    network, parts = subject.copy().double(), list[Tensor]()
    cond = taken(subject.batch.cond, slice(0, 1))
    try:
        for times in grid.split(AT_ONCE):
            parts.append(_followed(subject, network, x.double(), times, cond))
    except RuntimeError:  # types that are set inside of the network
        network, parts = subject.copy(), []
        for times in grid.to(x.dtype).split(AT_ONCE):
            parts.append(_followed(subject, network, x, times, cond))
    output = torch.cat(parts).double()
    output = output[:, output.var(0).argsort(descending=True)[:4096]]
    slope = output.diff(dim=0)
    slope = slope * torch.hann_window(len(slope), device=x.device, dtype=slope.dtype)[:, None]
    power = torch.fft.rfft(slope, dim=0).abs().square().sum(1)
    omega = 2 * math.pi * torch.arange(len(power), device=x.device) * (POINTS - 1) / ((HIGH - LOW) * len(slope))
    total = power.sum()
    if not float(total) > 0:
        return Spectrum(0.0, 0.0, 0.0)
    below = power.cumsum(0) / total

    def at(share: float) -> float:
        return float(omega[int((below < share).sum().clamp(min=1, max=len(omega) - 1))])  # 1: as fine as it can tell

    return Spectrum(at(0.5), at(0.9), float(power[omega > FAST].sum() / total))


def _followed(subject: Subject, network: torch.nn.Module, x: Tensor, times: Tensor, cond: Cond) -> Tensor:
    asked = repeated(cond, len(times))
    return subject.shortcut(asked, network)(x.expand(len(times), *x.shape[1:]), times).flatten(1)


@torch.no_grad()
def _anchor(subject: Subject) -> Finding:
    """Whether the network can be asked at c_FM, times that it was not trained on (Sec. 3.2.2)."""
    x_t, t = subject.point(0.5)
    own = as_objective(subject.run.objective).task if subject.run is not None else None
    task = own or ExpandedInterval()
    if not subject.is_teacher:
        return Finding("anchor", "good", "the network has learned its times")
    if "r" in task.anchor(t) and not getattr(subject.network, "auxiliary_time", False):
        return Finding("anchor", "note", f"the objective's {type(task).__name__} gives it a second time, to be learned")
    try:
        out = Prediction(subject.network, task.anchor, subject.batch.cond)(x_t, t)
    except (IndexError, ValueError, RuntimeError, AssertionError) as error:
        said = f"the network fails at c_FM, a time beyond its own ({str(error).strip().splitlines()[0]:.80})"
        return Finding("anchor", "wrong", said, "an embedding of time by a formula, which has no last entry")
    if not bool(out.isfinite().all()):
        line = "a time embedding that is finite beyond its range, such as sines and cosines"
        return Finding("anchor", "wrong", "the output at c_FM, a time beyond its own, is not finite", line)
    apart = relative(out - subject.flow(subject.batch.cond)(x_t, t), out)
    return Finding(
        "anchor", "good", f"can be asked at c_FM: the output there is {apart:.0%} from the flow, to be learned"
    )

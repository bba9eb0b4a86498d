"""Where the velocity target v comes from, and classifier-free guidance with an interval (Eq. 9).

    v = v_u + w (v_c - v_u)   for t in [low, high],   v = v_c elsewhere

w is ``guidance_scale``: w = 1 is no guidance at all, w < 1 an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from facm.core.types import VelocityField, at_least_float32, expand
from facm.derivative.compiled import has_compiled_parts, is_compiled
from facm.flow.conditions import Condition, Unconditional, check_label_dropout
from facm.flow.time_conditioning import Task, Times, native


@dataclass(frozen=True)
class Guidance:
    """Guidance of strength ``scale`` (w >= 1), acting for low <= t <= high, both inclusive (Table 5: 1.75, 0.125)."""

    scale: float = 1.75
    low: float = 0.125
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale >= 1:
            raise ValueError(f"guidance scale = {self.scale}, expected w >= 1 (w = 1 is no guidance)")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"guidance interval = [{self.low}, {self.high}], expected 0 <= low <= high <= 1")

    def active(self, t: Tensor) -> Tensor:
        """(B,) bool: where guidance acts."""
        return (t >= self.low) & (t <= self.high) & (self.scale > 1)


NO_GUIDANCE = Guidance(1.0)


def extrapolate(v_c: Tensor, v_u: Tensor, scale: float) -> Tensor:
    """v_u + w (v_c - v_u)."""
    return v_u + scale * (v_c - v_u)


def _both(network: Any, x_t: Tensor, times: Times, cond: Tensor | None, null: Tensor | None) -> tuple[Tensor, Tensor]:
    """Predictions under the condition and under the null, in one pass of 2B samples."""
    assert cond is not None
    assert null is not None
    twice = {name: torch.cat([c, c]) for name, c in times.items()}
    v_c, v_u = at_least_float32(network(torch.cat([x_t, x_t]), cond=torch.cat([cond, null]), **twice)).chunk(2)
    return v_c, v_u


def guided_velocity(
    network: Any,
    at: Callable[[Tensor], Times],
    x_t: Tensor,
    t: Tensor,
    cond: Tensor | None,
    condition: Condition,
    guidance: Guidance,
) -> Tensor:
    """The network's velocity at (x_t, t), guided where ``guidance`` is active. ``at`` maps t to the time condition.

    One pass: the batch under its condition, and, of the samples where guidance is active, under the null. A compiled
    network is asked for the null of all, in one shape: another shape would compile it again.
    """
    if guidance.scale == 1:
        return at_least_float32(network(x_t, cond=cond, **at(t)))
    null, active = condition.null(cond), guidance.active(t)
    if t.is_meta or torch.compiler.is_compiling() or is_compiled(network) or has_compiled_parts(network):
        v_c, v_u = _both(network, x_t, at(t), cond, null)
        return torch.where(expand(active, v_c), extrapolate(v_c, v_u, guidance.scale), v_c)
    assert cond is not None
    assert null is not None
    which = active.nonzero().squeeze(1)
    times = {name: torch.cat([c, c[which]]) for name, c in at(t).items()}
    out = at_least_float32(network(torch.cat([x_t, x_t[which]]), cond=torch.cat([cond, null[which]]), **times))
    v_c, v_u = out[: len(t)], out[len(t) :]
    return v_c.index_copy(0, which, extrapolate(v_c[which], v_u, guidance.scale))


def velocity_field(
    network: Any,
    at: Callable[[Tensor], Times],
    cond: Tensor | None,
    condition: Condition,
    guidance: Guidance = NO_GUIDANCE,
) -> VelocityField:
    """What a sampler integrates: (x, t) -> v, every t of a batch being the same; no null pass where guidance is off."""

    def field(x: Tensor, t: Tensor) -> Tensor:
        here = guidance if bool(guidance.active(t[:1])) else NO_GUIDANCE
        return guided_velocity(network, at, x, t, cond, condition, here)

    return field


@dataclass(frozen=True, eq=False)
class Point:
    """Where on the flow a velocity is asked for: x_1, x_0, x_t (B, ...), t (B,), cond (B,) and which samples had theirs
    dropped, (B,) bool or None."""

    x_1: Tensor
    x_0: Tensor
    x_t: Tensor
    t: Tensor
    cond: Tensor | None = None
    dropped: Tensor | None = None


@runtime_checkable
class VelocityTarget(Protocol):
    """Algorithm 1, line 4: the velocity v (B, ...) that anchors the flow and drives the shortcut; never has a graph.

    An attribute ``needs_teacher = True`` says so before training starts.
    """

    def __call__(self, network: Any, teacher: Any | None, p: Point, condition: Condition, task: Task) -> Tensor: ...


@dataclass(frozen=True)
class TeacherVelocity:
    """Distillation: the frozen teacher's guided velocity.

    at_anchor: query the teacher at c_FM instead of its native time t, for a teacher that was pre-trained with the
    mixed conditioning and nothing else.
    """

    guidance: Guidance = Guidance()
    at_anchor: bool = False
    needs_teacher = True

    @torch.no_grad()
    def __call__(self, network: Any, teacher: Any | None, p: Point, condition: Condition, task: Task) -> Tensor:
        if teacher is None:
            raise ValueError(
                "velocity = TeacherVelocity() needs a teacher and got None: give the run a teacher, "
                "or train from scratch with velocity = DataVelocity()"
            )
        at = task.anchor if self.at_anchor else partial(native, teacher)
        return guided_velocity(teacher, at, p.x_t, p.t, p.cond, condition, self.guidance)


@dataclass(frozen=True)
class DataVelocity:
    """From scratch: v = v_u + w ((x_1 - x_0) - v_u), with v_u the online network's own velocity at the null condition
    under stop-gradient; w = 1 gives exactly x_1 - x_0, and so does a sample whose label was dropped.

    at_shortcut: take v_u from the shortcut head c_CM instead of the anchor head c_FM (the reference does).
    both_online: Eq. 9 as printed, v = (x_1 - x_0) + w (v_c - v_u) with both terms from the network; the strength is
        that of w + 1 in the form above.
    extrapolate_outside: outside the interval use v_u = v_c, the network's conditional velocity, instead of switching
        guidance off (the reference does).
    """

    guidance: Guidance = NO_GUIDANCE
    at_shortcut: bool = False
    both_online: bool = False
    extrapolate_outside: bool = False
    needs_teacher = False

    def __post_init__(self) -> None:
        if self.both_online and self.extrapolate_outside:
            raise ValueError("both_online = True and extrapolate_outside = True: expected at most one of them")

    @torch.no_grad()
    def __call__(self, network: Any, teacher: Any | None, p: Point, condition: Condition, task: Task) -> Tensor:
        v, w = p.x_1 - p.x_0, self.guidance.scale
        if w == 1:
            return v
        times = (task.shortcut if self.at_shortcut else task.anchor)(p.t)
        null, active = condition.null(p.cond), self.guidance.active(p.t)
        if self.both_online:
            v_c, v_u = _both(network, p.x_t, times, p.cond, null)
            guided = v + w * (v_c - v_u)
        else:
            if self.extrapolate_outside:
                assert p.cond is not None
                assert null is not None
                null, active = torch.where(active, null, p.cond), torch.ones_like(active)
            guided = extrapolate(v, at_least_float32(network(p.x_t, cond=null, **times)), w)
        if p.dropped is not None:
            active = active & ~p.dropped
        return torch.where(expand(active, v), guided, v)


def check_guidance(condition: Condition, velocity: VelocityTarget, label_dropout: float) -> None:
    """Raise ValueError where dropout is no probability, or guidance has no null condition, or never trains it."""
    if not 0 <= label_dropout < 1:
        raise ValueError(f"label_dropout = {label_dropout}, expected a probability in [0, 1)")
    check_label_dropout(condition, label_dropout)
    guidance = getattr(velocity, "guidance", NO_GUIDANCE)
    if guidance.scale > 1 and isinstance(condition, Unconditional):
        raise ValueError(
            f"guidance scale = {guidance.scale} with condition = Unconditional(): there is no null condition to guide "
            "with; expected scale 1, as in TeacherVelocity(Guidance(1.0))"
        )
    if guidance.scale > 1 and isinstance(velocity, DataVelocity) and label_dropout == 0:
        raise ValueError(
            f"label_dropout = 0 with guidance scale {guidance.scale} from scratch: the null condition would never be "
            "trained; expected a positive label_dropout (0.1)"
        )

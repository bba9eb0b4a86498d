"""Where the velocity target v of Algorithm 1, line 4, comes from: a teacher, or the data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from facm.core.tensors import at_least_float32, expand
from facm.flow.conditions import Condition, Unconditional, check_label_dropout
from facm.flow.guidance import NO_GUIDANCE, Guidance, _both, extrapolate, guided_velocity
from facm.flow.interpolant import Point
from facm.flow.time_conditioning import Task, native


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

"""Where the velocity target v of Algorithm 1, line 4, comes from: a teacher, or the data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from facm.core.component import component, refused
from facm.core.cond import chosen
from facm.core.objective import Condition, Task, VelocityTarget, guidance_scale
from facm.core.tensors import at_least_float32, expand
from facm.flow.conditions import Unconditional, check_label_dropout
from facm.flow.guidance import NO_GUIDANCE, Guidance, both_velocities, guide, guided_velocity
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import native


@dataclass(frozen=True)
@component
class TeacherVelocity(VelocityTarget):
    """Distillation: the frozen teacher's guided velocity."""

    guidance: Guidance = Guidance()
    """Classifier-free guidance of the teacher, which is baked into the student."""
    at_anchor: bool = False
    """Query the teacher at c_FM instead of its native time t: for a teacher pre-trained with the mixed conditioning."""
    needs_teacher = True

    @property
    def guidance_scale(self) -> float:
        return self.guidance.strongest

    @torch.no_grad()
    def __call__(self, network: Any, teacher: Any | None, p: Interpolant, condition: Condition, task: Task) -> Tensor:
        if teacher is None:
            raise ValueError(
                "velocity = TeacherVelocity() needs a teacher and got None: give the run a teacher, "
                "or train from scratch with velocity = DataVelocity()"
            )
        at = task.anchor if self.at_anchor else partial(native, teacher)
        return guided_velocity(teacher, at, p.x_t, p.t, p.cond, condition, self.guidance)


@dataclass(frozen=True)
@component
class DataVelocity(VelocityTarget):
    """From scratch: v = v_u + w ((x_1 - x_0) - v_u), where v_u is the online network's velocity at the null condition
    under stop-gradient. w = 1 gives exactly x_1 - x_0, and so does a sample whose label was dropped."""

    guidance: Guidance = NO_GUIDANCE
    """Classifier-free guidance of the target; needs a positive label_dropout."""
    at_shortcut: bool = False
    """Take v_u from the shortcut head c_CM instead of the anchor head c_FM, as the reference does."""
    both_online: bool = False
    """Eq. 9 as printed: v = (x_1 - x_0) + w (v_c - v_u), both terms from the network; as strong as w + 1 otherwise."""
    extrapolate_outside: bool = False
    """Outside the interval take v_u = v_c, the conditional velocity, as the reference does, instead of no guidance."""

    @property
    def guidance_scale(self) -> float:
        return self.guidance.strongest

    def __post_init__(self) -> None:
        if self.both_online and self.extrapolate_outside:
            raise refused(self, "extrapolate_outside", "False with both_online = True: at most one of them")

    @torch.no_grad()
    def __call__(self, network: Any, teacher: Any | None, p: Interpolant, condition: Condition, task: Task) -> Tensor:
        v, w = p.v, self.guidance.at(p.t, p.v)
        if self.guidance.strongest == 1:
            return v
        times = (task.shortcut if self.at_shortcut else task.anchor)(p.t)
        null, active = condition.null(p.cond), self.guidance.active(p.t)
        if self.both_online:
            v_c, v_u = both_velocities(network, p.x_t, times, p.cond, null)
            guided = v + w * (v_c - v_u)
        else:
            if self.extrapolate_outside:
                null, active = chosen(active, null, p.cond), torch.ones_like(active)
            guided = guide(network, v, at_least_float32(network(p.x_t, cond=null, **times)), w)
        if p.dropped is not None:
            active = active & ~p.dropped
        return torch.where(expand(active, v), guided, v)


def guidance_of(velocity: Any) -> Guidance:
    """How the teacher that a student learned from was guided; none where ``velocity`` asks no teacher."""
    return velocity.guidance if isinstance(velocity, TeacherVelocity) else NO_GUIDANCE


def check_guidance(objective: Any, velocity: VelocityTarget) -> None:
    """Raise ComponentError where labels are to be dropped and there are none, or guidance has no null condition, or
    never trains it.

    objective: one with the fields ``condition`` and ``label_dropout``, while it is made. velocity: its target.
    """
    check_label_dropout(objective)
    scale = guidance_scale(velocity)
    if scale > 1 and isinstance(objective.condition, Unconditional):
        raise refused(
            objective,
            "condition",
            f"labels to guide with at guidance scale = {scale}: there is no null condition here; or scale 1, as in "
            "TeacherVelocity(Guidance(1.0))",
        )
    if scale > 1 and isinstance(velocity, DataVelocity) and objective.label_dropout == 0:
        raise refused(
            objective,
            "label_dropout",
            f"a positive one (0.1) with guidance scale {scale} from scratch: the null condition would never be trained",
        )

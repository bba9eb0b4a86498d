"""TRACT (Berthelot et al., arXiv 2303.04248): transitive closure time-distillation, a target made by an average of the
student's own weights.

The teacher's T steps of 1/T are divided into T' groups; from every time of a group the student learns to jump to the
group's end t_e in one DDIM step, which on the linear path is x_t + (t_e - t) F (Eq. 6-9, Alg. 1):

    x'    = x_t + v/T                              the teacher's step, from t to t' = t + 1/T
    x_e   = x' + (t_e - t') F~(x', t')             the self-teacher's jump on; x' itself where t' = t_e
    F     = (x_e - x_t) / (t_e - t)                the target; F~ has the weights phi~ <- mu phi~ + (1 - mu) phi

    L     = max(1, SNR) |x^ - x_1^|^2 = max((1 - t)^2, t^2) |F - target|^2        with x^ = x_t + (1 - t) F

as the authors' code weights it. Their best schedule is 1024 -> 32 -> 1: a phase is a run, whose teacher and first
weights are the student of the phase before: its velocity at t is its jump to the end of its group, which is one step
of the next phase. The mean square stands for the squared norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from facm.core.component import Range, component, refused
from facm.core.objective import Condition, Task, VelocityTarget
from facm.core.tensors import expand
from facm.core.types import Batch, Loss
from facm.derivative import Prediction
from facm.flow.conditions import Dropout
from facm.flow.distances import mean_square
from facm.flow.interpolant import Interpolant, draw_noise, rows, step_size
from facm.flow.time_conditioning import ExpandedInterval
from facm.flow.velocity import TeacherVelocity, check_guidance
from facm.objectives.asking import AsksAverage, Momentum
from facm.objectives.consistency_target import checked_network


@dataclass(frozen=True)
class TRACTTerms:
    """Every intermediate of one evaluation.

    x_t, v: (B, ...).
    t_next, t_end: (B,), the times after the teacher's step and after the jump.
    F, v_tar: (B, ...), the prediction and its target.
    error: (B,), their mean square.
    L: (B,), the loss of each sample.
    """

    x_t: Tensor
    v: Tensor
    t_next: Tensor
    t_end: Tensor
    F: Tensor
    v_tar: Tensor
    error: Tensor
    L: Tensor

    def loss(self) -> Loss:
        return Loss(self.L.mean(), {"consistency": self.L.detach(), "error": self.error.detach()})


@dataclass(frozen=True)
@component
class TRACT(AsksAverage):
    """One phase of TRACT.

    1024 -> 32 -> 1 is TRACT(condition, steps=1024, groups=32) from a flow, then TRACT(condition, steps=32) whose
    teacher and initial weights are the first run's.
    """

    condition: Condition
    """What the network is conditioned on, and its null: Labels(10), Unconditional()."""
    velocity: VelocityTarget = TeacherVelocity()
    """Where the velocity v comes from: TeacherVelocity()."""
    task: Task = ExpandedInterval()
    """How the network is told which velocity to predict: ExpandedInterval() or AuxiliaryTime() (Sec. 3.2.2)."""
    steps: Annotated[int, Range("[2, 1048576]")] = 1024
    """Steps T of the teacher."""
    groups: Annotated[int, Range("[1, 64]")] = 1
    """Steps T' of the student: groups of the teacher's steps, each of which becomes one."""
    momentum: Momentum = 0.5
    """Momentum mu of the self-teacher's weights; 0: the network itself, frozen."""
    label_dropout: Dropout = 0.0
    """Fraction of samples trained at the null condition."""
    learns_shortcut = True
    learns_flow = False
    draws_for_whole_step = True

    def __post_init__(self) -> None:
        check_guidance(self, self.velocity)
        if self.steps % self.groups or self.steps == self.groups:
            raise refused(self, "steps", f"more than groups = {self.groups}, and a multiple of it")

    @property
    def bounds(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple(k / self.groups for k in range(self.groups + 1))

    def evaluate(
        self, network: Any, point: Interpolant, teacher: Any | None = None, average: Any | None = None
    ) -> TRACTTerms:
        """One evaluation at given draws, whose times are multiples of 1/steps below 1.

        average: the self-teacher; None: the network itself, frozen.
        Raises ValueError for other times, labels that do not fit, a missing teacher, or a network without the second
        time that the task needs.
        """
        x_t, t = point.x_t, point.t
        index = (t.double() * self.steps).round()
        if t.device.type == "cpu" and not bool(((index / self.steps - t).abs() < 1e-6).all() and (t < 1).all()):
            raise ValueError(f"expected times that are multiples of 1/steps = 1/{self.steps}, below 1")
        size = self.steps // self.groups
        t_next = ((index + 1) / self.steps).to(t.dtype)
        t_end = (((index / size).floor() + 1) / self.groups).to(t.dtype)
        network = checked_network(self, network, point)
        v = self.velocity(network, teacher, point, self.condition, self.task)
        x_next = x_t + expand(t_next - t, v) * v
        with torch.no_grad():
            self_teacher = network if average is None else average
            F_next = Prediction(self_teacher, self.task.shortcut, point.cond)(x_next, t_next)
            on = expand((index + 1) % size > 0, v)  # at the end of a group the self-teacher's answer has no part
            x_end = torch.where(on, x_next + expand(t_end - t_next, v) * F_next, x_next)
            v_tar = (x_end - x_t) / expand(t_end - t, v)
        F = Prediction(network, self.task.shortcut, point.cond)(x_t, t)
        error = mean_square(F, v_tar)
        return TRACTTerms(x_t, v, t_next, t_end, F, v_tar, error, torch.maximum(1 - t, t).square() * error)

    def __call__(
        self,
        network: Any,
        batch: Batch,
        rng: torch.Generator,
        teacher: Any | None = None,
        average: Any | None = None,
    ) -> Loss:
        x_0 = draw_noise(batch, rng)
        index = torch.randint(self.steps, (step_size(batch),), generator=rng, device=rng.device)
        t = (rows(index, batch).double() / self.steps).to(x_0.dtype)
        point = Interpolant.at(x_0, batch, t, self.condition, self.label_dropout, rng)
        return self.evaluate(network, point, teacher, average).loss()

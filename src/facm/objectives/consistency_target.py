"""What the objectives share: the relaxed consistency target (Eq. 11-13), and the checks before an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from facm.core.objective import Objective
from facm.core.tensors import expand
from facm.derivative import same_dropout
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import check_task


@dataclass(frozen=True)
class ShortcutTarget:
    """The target of one relaxation step; nothing in it has a graph.

    v_bar, g, v_tar: (B, ...).
    """

    v_bar: Tensor
    g: Tensor
    v_tar: Tensor


def shortcut_target(
    F_CM: Tensor, dF: Tensor, v: Tensor, left: Tensor, alpha: Tensor, clamp: float | None
) -> ShortcutTarget:
    """One relaxation step of the fixed-point iteration F = v + (t_end - t) dF/dt.

    F_CM, dF, v: (B, ...); left = t_end - t, alpha: (B,); clamp: bound of the residual g, or None. alpha = 1 is no
    interpolation.
    """
    F_sg = F_CM.detach()
    v_bar = v + expand(left, v) * dF.detach()  # Alg. 1, line 7
    g = F_sg - v_bar  # Eq. 11
    g_clamped = g if clamp is None else g.clamp(-clamp, clamp)
    return ShortcutTarget(v_bar, g, F_sg - expand(alpha, v) * g_clamped)  # Eq. 12


def checked_network(objective: Objective, network: Any, point: Interpolant) -> Any:
    """``network``, with one dropout mask for all its calls in one evaluation.

    Raises ValueError for a network that lacks what the objective needs, and for a condition that does not fit.
    """
    if objective.task is not None:
        check_task(objective.task, network)
    objective.check_network(network)
    if objective.condition is not None:
        objective.condition.check(point.cond, len(point))
    return same_dropout(network)

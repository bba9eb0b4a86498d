"""How a network is told which velocity to predict at x_t (Sec. 3.2.2).

A task conditioning maps t (B,) to the network's time arguments:

    strategy            c_CM: average velocity from t to 1    c_FM: instantaneous velocity at t
    ExpandedInterval    t                                      2 - t
    AuxiliaryTime       (t, r = 1)                             (t, r = t)

Differentiating the network through ``shortcut(t)`` is Eq. 16, so neither strategy needs a special case: the tangent of
the time condition comes out as 1 for t and 0 for r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.objective import Task, Times


@dataclass(frozen=True)
class ExpandedInterval(Task):
    """c_CM = t in [0, 1], c_FM = 2 - t in [1, 2]: no change to the network (the paper's default)."""

    def shortcut(self, t: Tensor) -> Times:
        return {"t": t}

    def anchor(self, t: Tensor) -> Times:
        return {"t": 2 - t}


@dataclass(frozen=True)
class AuxiliaryTime(Task):
    """c_CM = (t, 1), c_FM = (t, t), through a second, zero-initialised time embedder."""

    def shortcut(self, t: Tensor) -> Times:
        return {"t": t, "r": torch.ones_like(t)}

    def anchor(self, t: Tensor) -> Times:
        return {"t": t, "r": t}


def native(network: Any, t: Tensor) -> Times:
    """The time of an ordinary flow-matching network: t, with r = t where it has a second time."""
    return {"t": t, "r": t} if getattr(network, "auxiliary_time", False) else {"t": t}


def check_task(task: Task, network: Any) -> None:
    """Raise ValueError where the task needs a second time and the network has none (never silently ignored)."""
    if "r" in task.anchor(torch.zeros(1)) and not getattr(network, "auxiliary_time", False):
        raise ValueError(
            f"task = {task} passes a second time r, but the network ({type(network).__name__}) has none: build it with "
            "auxiliary_time=True (a network of your own: set its attribute auxiliary_time = True), "
            "or use task = ExpandedInterval()"
        )

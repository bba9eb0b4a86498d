"""A trained network as sampling sees it: how it is called, and the velocity fields that solvers integrate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from facm.core.cond import Cond
from facm.core.objective import Condition, NetworkInterface, Task
from facm.core.types import VelocityField
from facm.flow.guidance import NO_GUIDANCE, Guidance, velocity_field
from facm.flow.time_conditioning import ExpandedInterval, native

Head = Literal["native", "anchor"]
"""Time conditions of an instantaneous velocity: c = t of an ordinary network, or c_FM of one that FACM trained."""

AverageVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x (B, ...), t (B,), r (B,) -> the average velocity (B, ...) from t to r."""


@dataclass(frozen=True)
class Source:
    """A network to draw samples from.

    network: an nn.Module on ``device``.
    interface: how it is called. Raises ValueError where its condition is None, for guidance needs the null.
    shape: of one sample, such as (C, H, W).
    device: where samples are drawn.
    """

    network: Any
    interface: NetworkInterface
    shape: tuple[int, ...]
    device: torch.device

    def __post_init__(self) -> None:
        if self.interface.condition is None:
            raise ValueError(
                "interface.condition = None, and sampling needs to know the null: expected Labels(classes) or "
                "Unconditional(), which an objective of your own has as its attribute 'condition'"
            )

    @property
    def condition(self) -> Condition:
        """What the network is conditioned on."""
        assert self.interface.condition is not None
        return self.interface.condition

    def fields(self, cond: Cond, guidance: Guidance = NO_GUIDANCE) -> VelocityFields:
        """The network's velocity fields for samples with the conditions ``cond`` (B,), on the source's device."""
        task = self.interface.task or ExpandedInterval()
        return VelocityFields(self.network, task, self.condition, cond, guidance)


@dataclass(frozen=True)
class VelocityFields:
    """What a network predicts for one batch under its conditions, guided where guidance is active.

    network: an nn.Module.
    task: how it is told which velocity to predict.
    condition: what it is conditioned on, and its null.
    cond: the conditions of the batch, (B,), or None.
    guidance: its strength and the times where it acts.
    """

    network: Any
    task: Task
    condition: Condition
    cond: Cond
    guidance: Guidance

    def shortcut(self) -> VelocityField:
        """(x, t) -> the average velocity from t to 1 (c_CM)."""
        return self._field(self.task.shortcut)

    def velocity(self, head: Head = "native") -> VelocityField:
        """(x, t) -> the instantaneous velocity at t. Raises ValueError for another head than those of ``Head``."""
        if head not in ("native", "anchor"):
            raise ValueError(f"head = {head!r}, expected 'native' or 'anchor'")
        return self._field(self.task.anchor if head == "anchor" else partial(native, self.network))

    def average_velocity(self) -> AverageVelocity:
        """(x, t, r) -> the average velocity from t to r. Raises ValueError for a network without a second time."""
        if not getattr(self.network, "auxiliary_time", False):
            raise ValueError(
                f"average velocities between two times need a network that knows a second time r, and "
                f"{type(self.network).__name__} has none"
            )
        return lambda x, t, r: self._field(lambda t: {"t": t, "r": r})(x, t)

    def _field(self, at: Callable[[Tensor], dict[str, Tensor]]) -> VelocityField:
        return velocity_field(self.network, at, self.cond, self.condition, self.guidance)

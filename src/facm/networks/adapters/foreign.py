"""Velocity networks of other conventions: reversed or scaled time, and other names of arguments.

Networks that predict noise are the subject of :mod:`facm.networks.adapters.variance_preserving`.

A network trained with noise at tau = 1 and data at tau = 0 predicts dx/dtau = x_0 - x_1 = -v. The map tau = 1 - c
turns c_FM = 2 - t into -tau_t, which is what the paper prescribes for reversed time (Sec. 3.2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from facm.core.component import Finite, component, refused
from facm.core.cond import Cond
from facm.core.tensors import at_least_float32
from facm.core.types import NetworkConfig
from facm.networks.adapters.base import Adapter


@dataclass(frozen=True)
@component
class Foreign(NetworkConfig):
    """A velocity network of another convention as F(x, c, cond) with t = 0 noise and t = 1 data."""

    network: NetworkConfig
    """Configuration of the network."""
    reversed_time: bool = True
    """Whether the network's time runs from 0 (data) to 1 (noise), as in SD3, FLUX and Wan."""
    time_scale: Finite = 1.0
    """Factor on the network's time: 1000 for a network that was trained on times from 0 to 1000."""
    time_name: str = "t"
    """Name of the network's time argument."""
    cond_name: str = "cond"
    """Name of the network's argument for the condition."""

    def __post_init__(self) -> None:
        if self.time_scale == 0:
            raise refused(self, "time_scale", "a factor that is not 0")
        for name in ("time_name", "cond_name"):
            if not getattr(self, name).isidentifier():
                raise refused(self, name, "the name of an argument")
        if self.time_name == self.cond_name:
            raise refused(self, "cond_name", "another name than time_name's")

    def build(self) -> ForeignNetwork:
        return ForeignNetwork(self.network.build(), self)


class ForeignNetwork(Adapter):
    """F from a velocity network of another convention; see :class:`Foreign`."""

    passes_second_time = False
    config: Foreign

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        config = self.config
        arguments: dict[str, Any] = {config.time_name: self.inner_time(t)}
        if cond is not None:
            arguments[config.cond_name] = cond
        out = self.inner(x, **arguments)
        return -out if config.reversed_time else out

    def inner_time(self, t: Tensor) -> Tensor:
        c = at_least_float32(t)  # scaled by 1000, a time in bf16 would be off by whole steps
        return self.config.time_scale * (1 - c if self.config.reversed_time else c)

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
    input_name: str = ""
    """Name of the network's argument for x; empty: x is its first argument."""

    def __post_init__(self) -> None:
        if self.time_scale == 0:
            raise refused(self, "time_scale", "a factor that is not 0")
        for name in ("time_name", "cond_name", "input_name"):
            if not getattr(self, name).isidentifier() and not (name == "input_name" and self.input_name == ""):
                raise refused(self, name, "the name of an argument")
        if self.time_name == self.cond_name:
            raise refused(self, "cond_name", "another name than time_name's")
        if self.input_name in (self.time_name, self.cond_name):
            raise refused(self, "input_name", "another name than those of time and condition")

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
        out = self.inner(**{config.input_name: x}, **arguments) if config.input_name else self.inner(x, **arguments)
        velocity = tensor_of(out, type(self.inner).__name__)
        return -velocity if config.reversed_time else velocity

    def inner_time(self, t: Tensor) -> Tensor:
        c = at_least_float32(t)  # scaled by 1000, a time in bf16 would be off by whole steps
        return self.config.time_scale * (1 - c if self.config.reversed_time else c)


def tensor_of(out: Any, name: str) -> Tensor:
    """The prediction in what a network returned: a tensor, its attribute ``sample`` as diffusers' models have it, or
    the first entry of a tuple. Raises ValueError for anything else."""
    found = out[0] if isinstance(out, tuple | list) and out else getattr(out, "sample", out)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"network {name} returned {type(out).__name__}, expected a tensor, a tuple that begins with it, or an "
            "object whose attribute 'sample' it is"
        )
    return found

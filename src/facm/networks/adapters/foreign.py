"""Foreign conventions of a velocity network are translated here and nowhere else: time that runs the other way or is
scaled, arguments with other names. (One that predicts noise: :mod:`facm.networks.adapters.variance_preserving`.)

A network trained with noise at tau = 1 and data at tau = 0 predicts dx/dtau = x_0 - x_1 = -v. The map tau = 1 - c
turns c_FM = 2 - t into -tau_t, which is what the paper prescribes for reversed time (Sec. 3.2.2).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from facm.core.tensors import at_least_float32
from facm.core.types import NetworkConfig


@dataclass(frozen=True)
class Foreign:
    """A velocity network of another convention, seen as F(x, c, cond) with t = 0 noise and t = 1 data.

    network: its configuration. reversed_time: noise is at its time 1 (SD3, FLUX, Wan). time_scale: factor on its time
    (1000 where it was trained on 0 .. 1000). time_name, cond_name: its argument names.
    """

    network: NetworkConfig
    reversed_time: bool = True
    time_scale: float = 1.0
    time_name: str = "t"
    cond_name: str = "cond"

    def build(self) -> ForeignNetwork:
        return ForeignNetwork(self.network.build(), self)


class ForeignNetwork(nn.Module):
    auxiliary_time = False

    def __init__(self, inner: nn.Module, config: Foreign) -> None:
        super().__init__()
        self.inner, self.config = inner, config
        if not getattr(inner, "draws", True):
            self.draws = False

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        config = self.config
        c = at_least_float32(t)  # scaled by 1000, a time in bf16 would be off by whole steps
        tau = config.time_scale * (1 - c if config.reversed_time else c)
        arguments: dict[str, Any] = {config.time_name: tau}
        if cond is not None:
            arguments[config.cond_name] = cond
        out = self.inner(x, **arguments)
        return -out if config.reversed_time else out


def adapters_of(network: Any) -> list[str]:
    """The adapters around a built network, outermost first, with their settings: in others, weights mean
    something else."""
    found = []
    config = getattr(network, "config", None)
    while is_dataclass(config) and hasattr(config, "network") and hasattr(network, "inner"):
        own = ", ".join(f"{f.name}={getattr(config, f.name)!r}" for f in fields(config) if f.name != "network")
        found.append(f"{type(config).__name__}({own})")
        network = network.inner
        config = getattr(network, "config", None)
    return found


HARMLESS = {"auxiliary_time", "weight_head", "dropout"}
"""Settings in which a network may differ from the one whose weights it starts from."""


def unlike(network: Any, other: Any) -> list[str]:
    """Settings of the networks inside all adapters that differ where both are of one kind: weights of the same names
    and shapes may still be another function's, such as without pixel norm."""
    ours, theirs = (_inside(n) for n in (network, other))
    if type(ours) is not type(theirs) or not is_dataclass(ours):
        return []
    names = [f.name for f in fields(ours) if f.name not in HARMLESS]
    return [
        f"{n} = {getattr(theirs, n)!r}, {getattr(ours, n)!r} here"
        for n in names
        if getattr(ours, n) != getattr(theirs, n)
    ]


def _inside(network: Any) -> Any:
    """The configuration of a built network inside all adapters, or None."""
    config = getattr(network, "config", None)
    return None if config is None else inner_config(config)


def inner_config(config: Any) -> Any:
    """The configuration of the network inside all adapters, or itself."""
    while hasattr(config, "network"):
        config = config.network
    return config

"""What all adapters share: a network of another convention inside a module that follows this package's."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from facm.core.types import NetworkConfig


class Adapter(nn.Module):
    """A network of another parametrisation as F(x, c, cond[, r]). A subclass defines ``forward``.

    inner: The adapted network; its weights keep their names behind the prefix ``inner.``.
    config: The adapter's configuration, whose field ``network`` is the inner network's.
    auxiliary_time: Whether the network takes a second time r (B,).
    weight_head: Whether the network has a method log_weight(t), the log weight of a loss at time t.
    zero_init_prefixes: Prefixes of the parameters that have no effect as initialised; the weights that a run starts
        from may lack them.
    stochastic: Whether a call in train mode may draw random numbers.
    passes_second_time: Whether ``forward`` passes r on; a class attribute, False where it takes none.
    """

    passes_second_time: ClassVar[bool] = True

    def __init__(self, inner: nn.Module, config: NetworkConfig) -> None:
        super().__init__()
        self.inner, self.config = inner, config
        self.auxiliary_time: bool = self.passes_second_time and getattr(inner, "auxiliary_time", False)
        self.weight_head: bool = getattr(inner, "weight_head", False)
        self.zero_init_prefixes = tuple(f"inner.{name}" for name in getattr(inner, "zero_init_prefixes", ()))
        self.stochastic: bool = getattr(inner, "stochastic", True)

    def inner_time(self, t: Tensor) -> Tensor:
        """The time argument (B,) of the inner network for the time condition c = t (B,) in [0, 2]."""
        return t

    def log_weight(self, t: Tensor) -> Tensor:
        """w (B,) of the inner network at its time for t (B,). Raises ValueError where it has no such head."""
        if not self.weight_head:
            raise ValueError("log_weight(t) of a network with weight_head = False, expected weight_head = True")
        return self.inner.log_weight(self.inner_time(t))  # type: ignore[operator]


def adapters_of(network: Any) -> list[str]:
    """The adapters around a built network with their settings, outermost first.

    The same weights behind other adapters, or behind adapters with other settings, are another function.
    """
    found = []
    config = getattr(network, "config", None)
    while is_dataclass(config) and hasattr(config, "network") and hasattr(network, "inner"):
        settings = ", ".join(f"{f.name}={getattr(config, f.name)!r}" for f in fields(config) if f.name != "network")
        found.append(f"{type(config).__name__}({settings})")
        network = network.inner
        config = getattr(network, "config", None)
    return found


HARMLESS = {"auxiliary_time", "weight_head", "dropout"}
"""Settings in which a network may differ from the one whose weights it starts from."""


def unlike(network: Any, other: Any) -> list[str]:
    """The settings that differ between two networks of one kind, inside all their adapters.

    Weights of the same names and shapes may belong to another function, such as the one without pixel norm.
    """
    ours, theirs = (_config_inside(n) for n in (network, other))
    if type(ours) is not type(theirs) or not is_dataclass(ours):
        return []
    names = [f.name for f in fields(ours) if f.name not in HARMLESS]
    return [
        f"{n} = {getattr(theirs, n)!r}, {getattr(ours, n)!r} here"
        for n in names
        if getattr(ours, n) != getattr(theirs, n)
    ]


def _config_inside(network: Any) -> Any:
    """The configuration of a built network inside all adapters, or None."""
    config = getattr(network, "config", None)
    return None if config is None else inner_config(config)


def inner_config(config: Any) -> Any:
    """The configuration of the network inside all adapters; ``config`` itself where there is none."""
    while hasattr(config, "network"):
        config = config.network
    return config

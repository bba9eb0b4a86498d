"""The same dropout mask for all evaluations of a network in one training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.modules import unwrapped


@dataclass(frozen=True, eq=False)
class SameDropout:
    """A network that draws the same dropout mask at every call.

    network: The network, or a wrapper around it.
    state: The state of the random generator that every call starts from.
    device: The CUDA device of that generator; None for the CPU's.
    """

    network: Any
    state: Tensor
    device: torch.device | None

    @property
    def auxiliary_time(self) -> bool:
        return getattr(self.network, "auxiliary_time", False)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.replay()
        return self.network(*args, **kwargs)

    def replay(self) -> None:
        """Put the generator back to the state of the first call."""
        if self.device is None:
            torch.set_rng_state(self.state)
        else:
            torch.cuda.set_rng_state(self.state, self.device)


def same_dropout(network: Any) -> Any:
    """``network`` with the same dropout mask at every call.

    The anchor, the shortcut and its tangent in one step must be one function, otherwise the tangent is that of another
    network. A network in eval mode is returned unchanged, and so is one whose attribute ``stochastic`` is False because
    it has no dropout nor anything else that draws random numbers.
    """
    if not getattr(network, "training", False) or not getattr(unwrapped(network), "stochastic", True):
        return network
    device = next((p.device for p in network.parameters() if p.device.type == "cuda"), None)
    return SameDropout(network, torch.get_rng_state() if device is None else torch.cuda.get_rng_state(device), device)

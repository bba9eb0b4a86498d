"""One dropout mask in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.modules import unwrapped


@dataclass(frozen=True, eq=False)
class SameDropout:
    """The network, drawing the same mask at every call."""

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
        """Back to where the first call drew from."""
        if self.device is None:
            torch.set_rng_state(self.state)
        else:
            torch.cuda.set_rng_state(self.state, self.device)


def same_dropout(network: Any) -> Any:
    """``network``, drawing the same dropout mask at every call: the anchor, the shortcut and its tangent in one step
    must be one function, else the tangent is that of another network. A network in eval mode, or one whose attribute
    ``stochastic`` is False (it has no dropout nor anything like it), is returned as it is."""
    if not getattr(network, "training", False) or not getattr(unwrapped(network), "stochastic", True):
        return network
    device = next((p.device for p in network.parameters() if p.device.type == "cuda"), None)
    return SameDropout(network, torch.get_rng_state() if device is None else torch.cuda.get_rng_state(device), device)

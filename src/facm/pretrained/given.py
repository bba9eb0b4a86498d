"""The weights of a network that was given from Python as an object: a teacher, or where a run starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from facm.core.component import component
from facm.core.hashing import digest
from facm.core.types import NetworkConfig
from facm.runs.config import Pretrained


@dataclass(frozen=True)
@component
class GivenWeights(Pretrained):
    """A network that was given from Python, with the weights that it had then."""

    network: NetworkConfig
    """The network, perhaps inside adapters."""
    sha256: str
    """Hash of its weights."""

    def load(self) -> torch.nn.Module:
        """A copy of it. Raises ValueError where its weights have changed since, or it is not here."""
        network = self.network.build().eval().requires_grad_(False)
        if digest(network.state_dict()) != self.sha256:
            raise ValueError(
                "the network that was given from Python has other weights than the run began with: expected the same, "
                "as after loading them from their file again"
            )
        return network


def given_weights(network: NetworkConfig) -> GivenWeights:
    """What ``network`` builds, with the weights that it has now."""
    return GivenWeights(network, digest(network.build().state_dict()))

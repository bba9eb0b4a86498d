"""A published file as a run's teacher, or as the weights that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from facm.pretrained.reader import Published, open_published
from facm.runs.checkpoint import load_strictly


def built(published: Published) -> torch.nn.Module:
    """Its network with its weights, in eval mode and without gradients."""
    network = published.network.build()
    load_strictly(network, published.state, str(published.path))
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class FromFile:
    """The network of a published file, or of one that ``facm export`` or ``facm import`` wrote.

    path: the file. family, weights, heads: as in :func:`facm.pretrained.open_published`.
    """

    path: str
    family: str | None = None
    weights: str | None = None
    heads: int | None = None

    def load(self) -> torch.nn.Module:
        """In eval mode and without gradients. Raises ValueError where the file does not tell or fit."""
        return built(open_published(Path(self.path), self.family, self.weights, self.heads))

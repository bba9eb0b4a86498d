"""Which of several frozen networks is on the device that computes; the others wait in host memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from facm.distributed.wrap import is_sharded


class Residence:
    """A place on the device for one of these networks at a time.

    moves: how often a network was brought there.

    The weights are frozen: what is brought is a copy, which is dropped again, and nothing is copied back.
    """

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        self._networks = networks
        self._host: dict[str, list[Tensor]] = {}
        self.there: str | None = None
        self.moves = 0

    def bring(self, name: str, device: torch.device) -> None:
        """Let the network ``name`` be on ``device``, and no other. Raises ValueError for one that is sharded."""
        if name == self.there:
            return
        self.leave()
        host = self._host.setdefault(name, [])
        for tensor in _tensors(self._networks[name]):
            if is_sharded(tensor):
                raise ValueError(
                    "resident = 'one' with sharded weights, of which every rank holds a part; expected resident = "
                    "'both', with engine.cpu_offload = True where memory is short"
                )
            host.append(tensor.data)
            tensor.data = tensor.data.to(device)
        self.there = name
        self.moves += 1

    def leave(self) -> None:
        """Let all be in host memory."""
        if self.there is not None:
            host = self._host.pop(self.there)
            for tensor, kept in zip(_tensors(self._networks[self.there]), host, strict=True):
                tensor.data = kept
            self.there = None


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()

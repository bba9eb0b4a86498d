"""Which of several frozen networks is on the device that computes; the others wait in host memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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
            host.append(_pinned(tensor.data, device))
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


class Room:
    """Frozen tensors that wait in host memory while something else needs their place on the device.

    tensors: not sharded; they do not change, so that one copy of them stays in host memory.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._host: list[Tensor] = []

    @contextmanager
    def made(self) -> Iterator[None]:
        """While it lasts the tensors are in host memory; after it, on their devices."""
        devices = [tensor.device for tensor in self._tensors]
        if not self._host:
            self._host = [
                _pinned(tensor.data.to("cpu", copy=True), device)
                for tensor, device in zip(self._tensors, devices, strict=True)
            ]
        for tensor, kept in zip(self._tensors, self._host, strict=True):
            tensor.data = kept
        try:
            yield
        finally:
            for tensor, kept, device in zip(self._tensors, self._host, devices, strict=True):
                tensor.data = kept.to(device, copy=True)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """In host memory as it is fastest copied to ``device`` from."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor


def sized(network: nn.Module) -> int:
    """Bytes of a network's weights and buffers."""
    return sum(tensor.nbytes for tensor in _tensors(network))


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()

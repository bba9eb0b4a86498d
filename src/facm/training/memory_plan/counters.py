"""Bytes that live and operations that run, counted where PyTorch dispatches them: on the CPU, or for nothing at all on
the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import flop_registry

from facm.core.torch_private import TorchDispatchMode, overload_packet, storage_key, tree_leaves

SWEEP = 16  # operations between two looks for what has been freed


class LiveBytes(TorchDispatchMode):
    """``peak``: the most bytes of tensors, made inside, that were alive at once; ``live``: those alive now."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self._calls = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage_key(a) for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        out = func(*args, **(kwargs or {}))
        self._calls += 1
        if self._calls % SWEEP == 0:
            self.sweep()
        for tensor in tree_leaves(out):
            if type(tensor) is Tensor or isinstance(tensor, torch.nn.Parameter):
                self._add(tensor, given)
        if self.live > self.peak:
            self.sweep()
            self.peak = max(self.peak, self.live)
        return out

    def sweep(self) -> int:
        """Forget what has been freed; the bytes alive now."""
        for key in [key for key, (ref, _) in self._storages.items() if ref.expired()]:
            self.live -= self._storages.pop(key)[1]
        return self.live

    def _add(self, tensor: Tensor, given: set[int]) -> None:
        key = storage_key(tensor)
        known = self._storages.get(key)
        if known is not None and known[0].expired():  # another storage at the same address
            self.live -= self._storages.pop(key)[1]
            known = None
        if known is None and key not in given:
            storage = tensor.untyped_storage()
            self._storages[key] = (StorageWeakRef(storage), storage.nbytes())
            self.live += storage.nbytes()


class Flops(TorchDispatchMode):
    """``total``: multiply-adds times two, of the products, convolutions and attention that ran inside."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(overload_packet(func))
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out

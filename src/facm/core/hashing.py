"""Hashes of weights, by which records name the network behind a number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def identity_of(name: str, network: nn.Module) -> str:
    """``name`` and the first 16 hex digits of the sha256 of the network's parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"{name}-{digest.hexdigest()[:16]}"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of names, types, shapes and bytes, independent of order, device and memory layout."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()

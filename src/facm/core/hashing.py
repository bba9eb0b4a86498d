"""Hashes of weights and of files, by which records name what is behind a number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from facm.core.untrusted.door import open_regular


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


def file_sha256(path: Path, links: bool = True) -> str:
    """The sha256 of a regular file; see :func:`facm.core.untrusted.door.open_regular`, whose errors this raises."""
    with open_regular(path, links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

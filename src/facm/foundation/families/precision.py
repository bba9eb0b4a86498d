"""Times in float32 and all else in the type of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def as_weights(transformer: nn.Module, layer: str, value: Tensor) -> Tensor:
    """``value`` in the type of a layer's weights, unless autocast finds the type of each product itself."""
    return value if _autocast(value) else value.to(_weight(transformer.get_submodule(layer)).dtype)


@contextlib.contextmanager
def exact_time(embedding: Any, time: Tensor) -> Iterator[None]:
    """Inside the context the sinusoids of ``embedding`` are those of ``time`` (B,) in float32.

    Some transformers cast the time to the type of the first layer's output before they take sinusoids of it. In
    bfloat16 that is a time of two digits, and its derivative is off by several percent.

    embedding: a module with ``time_proj``, which makes the sinusoids, and ``timestep_embedder``, which takes them.
    """
    if not _autocast(time) and _weight(embedding.timestep_embedder.linear_1).dtype == torch.float32:
        yield
        return

    def replace(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (embedding.time_proj(time).to(inputs[0].dtype), *inputs[1:])

    handle = embedding.timestep_embedder.register_forward_pre_hook(replace, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def _autocast(value: Tensor) -> bool:
    device = value.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight

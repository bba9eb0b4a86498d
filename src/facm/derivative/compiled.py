"""Compiled networks and their derivative.

Dual numbers must never enter compiled code: it would fail, or in some versions silently drop the tangent. Hence the
derivative of a compiled module is compiled as a unit with the dual level inside, and every other strategy runs the
module eagerly.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.modules import is_compiled
from facm.core.torch_private import compiled_call, set_compiled_call

Tensors = tuple[Tensor, ...]


@contextlib.contextmanager
def uncompiled(network: Any) -> Iterator[None]:
    """Run the network and its parts eagerly inside the context."""
    parts = [m for m in network.modules() if is_compiled(m)] if isinstance(network, nn.Module) else []
    kept = [compiled_call(m) for m in parts]
    for module in parts:
        set_compiled_call(module, None)
    try:
        yield
    finally:
        for module, call in zip(parts, kept, strict=True):
            set_compiled_call(module, call)


@functools.cache
def compiled(pair: Callable[..., Any]) -> Callable[..., Any]:
    """``pair``, compiled as one graph with static shapes.

    A graph break inside a dual level would let duals leave compiled code; the batch size of a run does not change.
    """
    return torch.compile(pair, fullgraph=True, dynamic=False)

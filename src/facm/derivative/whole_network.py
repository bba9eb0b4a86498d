"""The naive way: forward mode through the whole network, the tangent's graph included."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from facm.derivative.base import Function, Pair
from facm.derivative.compiled import uncompiled
from facm.derivative.errors import explained, no_checkpointing
from facm.derivative.inside_forward import innermost, inside_wrapper


def plain_attention() -> AbstractContextManager[Any]:
    """Attention by its plain formula, which has a forward-mode derivative; PyTorch's fused kernels have none."""
    return sdpa_kernel(SDPBackend.MATH)


def whole_pair(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Value and tangent of a function of any number of tensors, both computed by ``torch.func.jvp``."""
    with plain_attention():
        value, tangent = torch.func.jvp(function, primals, tangents)  # type: ignore[misc]
    return value, tangent.detach()


@dataclass(frozen=True)
class WholeNetwork:
    """One forward-mode pass through the whole network, the tangent's graph included.

    The reference for all others: about 5 forward passes with the backward, the most memory, no fused attention, no
    activation checkpointing.
    """

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        network = innermost(function)
        with explained(network, "WholeNetwork()"), uncompiled(network), no_checkpointing():
            return inside_wrapper(whole_pair, function, primals, tangents)

"""The naive strategy: forward mode through the entire network, including the graph of the tangent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from facm.derivative.base import Derivative, Function, Pair
from facm.derivative.compiled import eagerly
from facm.derivative.errors import explained, no_checkpointing
from facm.derivative.inside_forward import innermost, inside_wrapper
from facm.derivative.lost_tangents import KeepTangents


def plain_attention() -> AbstractContextManager[Any]:
    """Compute attention by its plain formula, since PyTorch's fused kernels have no forward-mode derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def whole_pair(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Value and tangent of a function of any number of tensors by ``torch.func.jvp``."""
    with eagerly(), plain_attention():
        value, tangent = torch.func.jvp(keeping_tangents(function), primals, tuple(d.clone() for d in tangents))  # type: ignore[misc]
    return value, tangent.detach()


def keeping_tangents(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, in which no operation loses a tangent without an error; unchanged in code that is being compiled,
    where the mode cannot be traced inside ``torch.func.jvp``."""
    if torch.compiler.is_compiling():
        return function

    def kept(*args: Any) -> Any:
        with KeepTangents():
            return function(*args)

    return kept


@dataclass(frozen=True)
class WholeNetwork(Derivative):
    """One forward-mode pass through the entire network, including the graph of the tangent.

    It is the reference for all others: with the backward pass it costs about 5 forward passes and the most memory,
    without fused attention and activation checkpointing.
    """

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        network = innermost(function)
        with explained(network, "WholeNetwork()"), no_checkpointing():
            return inside_wrapper(whole_pair, function, primals, tangents)

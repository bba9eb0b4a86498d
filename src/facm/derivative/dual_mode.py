"""Value and tangent together, operation by operation.

Dual numbers pass through the ordinary call of the network. For each operation the value is computed on plain tensors,
so that autograd, fused kernels, hooks and checkpointing see nothing unusual, and the tangent without a graph; the
result is a dual number again. The rules are in :mod:`facm.derivative.tangent_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.overrides import TorchFunctionMode

from facm.core.torch_private import compiler_is_loaded, eager_when_differentiated, functorch_level
from facm.derivative.attention.dispatch import Kernel
from facm.derivative.compiled import eagerly
from facm.derivative.lost_tangents import check_inference_mode
from facm.derivative.tangent_rules import NATIVE, apply_rule


def op_level_pair(
    function: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    attention: Kernel = "auto",
) -> tuple[Tensor, Tensor]:
    """The value with its graph, and the tangent without one, of a function of any number of tensors."""
    with eagerly(), fwd.dual_level():
        # Copies, since a network may write into its inputs, and so into their tangents.
        duals = [fwd.make_dual(p, d.clone()) for p, d in zip(primals, tangents, strict=True)]
        with _OpByOp(attention):
            out = function(*duals)
        value, tangent = fwd.unpack_dual(out)
        if not torch.compiler.is_compiling() and compiler_is_loaded() and value.requires_grad:
            eager_when_differentiated(value)
        return value, torch.zeros_like(value) if tangent is None else tangent.detach()


class _OpByOp(TorchFunctionMode):
    """Applies the tangent rules to every operation inside."""

    def __init__(self, attention: Kernel) -> None:
        super().__init__()
        self.attention = attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch.compiler.is_compiling():
            if functorch_level() is not None:  # a transform of the network's own, which propagates duals itself
                return func(*args, **(kwargs or {}))
            if torch.is_inference_mode_enabled():
                check_inference_mode(args, kwargs or {})
            if func in NATIVE:  # most of the calls
                return func(*args, **(kwargs or {}))
        return apply_rule(func, args, kwargs or {}, self.attention)

"""Forward-mode tangents around FSDP2's hooks.

Before a unit's forward, FSDP2 passes its inputs through an autograd function whose forward-mode rule is not right in
every version of torch and every mode. Strip tangents before FSDP2's pre-forward hook and re-attach them after it,
hidden from torch-function modes, which would differentiate that operation as well.

After it, FSDP2 hooks the gradient of its outputs. A view, as every tensor with a tangent is, loses its hooks when it is
written into, and the unit's parameters would not be there in the backward pass: what goes on is a copy of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn

from facm.core.torch_private import (
    inside_dual_level,
    is_view,
    tree_flatten,
    tree_map,
    tree_unflatten,
    without_torch_function,
)


def let_duals_pass(unit: nn.Module) -> None:
    """Register the hooks; call it after ``fully_shard(unit)``. Inputs without tangents cost nothing."""
    aside: list[list[Tensor | None]] = []  # a stack, since units may be nested

    def take_off(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not inside_dual_level():
            return None
        leaves, form = tree_flatten((args, kwargs))
        with without_torch_function():
            pairs = [fwd.unpack_dual(x) if isinstance(x, Tensor) else (x, None) for x in leaves]
        aside.append([tangent for _, tangent in pairs])
        return tree_unflatten([x for x, _ in pairs], form)

    def put_back(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not inside_dual_level():
            return None
        leaves, form = tree_flatten((args, kwargs))
        with without_torch_function():
            duals = [
                x if tangent is None else fwd.make_dual(x, tangent.to(x.dtype))
                for x, tangent in zip(leaves, aside.pop(), strict=True)
            ]
        return tree_unflatten(duals, form)

    unit.register_forward_pre_hook(take_off, prepend=True, with_kwargs=True)
    unit.register_forward_pre_hook(put_back, with_kwargs=True)
    unit.register_forward_hook(_copied)


def _copied(module: nn.Module, args: Any, out: Any) -> Any:
    return tree_map(_copy, out) if torch.is_grad_enabled() else None


def _copy(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.requires_grad or not is_view(x):
        return x
    if not inside_dual_level():
        return x.clone()
    with without_torch_function():
        value, tangent = fwd.unpack_dual(x)
        return x.clone() if tangent is None else fwd.make_dual(value.clone(), tangent)

"""Forward-mode tangents past FSDP2's hooks.

Before a unit's forward FSDP2 passes its inputs through an autograd function whose forward-mode rule does not hold in
every torch and every mode. So the tangents step aside: taken off before all other hooks, put back after them; out of
sight of a torch-function mode, to which this would be one more operation to differentiate.
"""

from __future__ import annotations

from typing import Any

import torch.autograd.forward_ad as fwd
from torch import Tensor, nn

from facm.core.torch_private import inside_dual_level, tree_flatten, tree_unflatten, without_torch_function


def let_duals_pass(unit: nn.Module) -> None:
    """To be called after ``fully_shard(unit)``. Costs nothing where no tangent is carried."""
    aside: list[list[Tensor | None]] = []  # a stack: units may be nested

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

"""A network's blocks, recomputed in the backward pass or compiled: in place, with every name as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from facm.core.torch_private import inside_functorch, replace_forward


def prepare(blocks: Sequence[nn.Module], checkpointing: bool, compiled: bool) -> None:
    """Checkpointing inside, compilation around it. Raises ValueError without blocks to act on.

    Neither wraps a module, which would rename parameters: checkpointing is a forward on the instance, compilation is
    the module's own. Tangents never enter compiled code; the derivative sees to that.
    """
    wanted = [name for name, on in (("checkpointing", checkpointing), ("compile", compiled)) if on]
    if wanted and not blocks:
        raise ValueError(
            f"engine.{wanted[0]} acts on blocks, and the network has no ModuleList or ModuleDict: set engine.blocks"
        )
    for block in blocks:
        if checkpointing:
            replace_forward(block, partial(_recomputed, block.forward))
        if compiled:
            block.compile()


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Nothing is kept for the backward pass but the inputs; inside func.jvp, which does not allow it, all is kept."""
    if not torch.is_grad_enabled() or (not torch.compiler.is_compiling() and inside_functorch()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)

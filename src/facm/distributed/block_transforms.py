"""A network's blocks, recomputed in the backward pass or compiled: in place, with every name as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import nn
from torch.utils.checkpoint import checkpoint


def duals_travel() -> bool:
    """Whether forward-mode tangents may ride on the tensors that are passed around now."""
    return fwd._current_level >= 0


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
            block.forward = partial(_recomputed, block.forward)
        if compiled:
            block.compile()


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Nothing is kept for the backward pass but the inputs; inside func.jvp, which does not allow it, all is kept."""
    if not torch.is_grad_enabled() or (not torch.compiler.is_compiling() and _transformed()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None

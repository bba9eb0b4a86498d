"""Activation checkpointing and compilation of a network's blocks, in place and without renaming parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from facm.core.compile_cache import keep_compiled_code
from facm.core.torch_private import inside_functorch, replace_forward


def prepare(blocks: Sequence[nn.Module], checkpointing: bool, compiled: bool) -> None:
    """Checkpoint the blocks and compile them around that. Raises ValueError where there are no blocks.

    Neither wraps a module, which would rename parameters: checkpointing replaces the instance's forward, and
    compilation is the module's own. The derivatives keep tangents out of compiled code.
    """
    wanted = [name for name, on in (("checkpointing", checkpointing), ("compile", compiled)) if on]
    if wanted and not blocks:
        raise ValueError(
            f"engine.{wanted[0]} acts on blocks, and the network has no ModuleList or ModuleDict: set engine.blocks"
        )
    if compiled:
        keep_compiled_code()
    for block in blocks:
        if checkpointing:
            replace_forward(block, partial(_recomputed, block.forward))
        if compiled:
            # Static shapes: of blocks that it meets at several heights and widths, as a U-Net's, torch.compile would
            # make one graph for all, for whose convolutions Inductor (2.13) cannot order the strides.
            block.compile(dynamic=False)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Keep only the inputs for the backward pass; inside func.jvp, which does not allow it, keep everything."""
    if not torch.is_grad_enabled() or (not torch.compiler.is_compiling() and inside_functorch()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)

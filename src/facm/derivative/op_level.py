"""Operation by operation: any network, its fused attention and its own checkpointing unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from facm.core.modules import has_compiled_parts, is_compiled, unwrapped
from facm.derivative.attention.dispatch import Kernel
from facm.derivative.base import Function, Pair, Prediction
from facm.derivative.chain import Chain, Chained
from facm.derivative.compiled import compiled, uncompiled
from facm.derivative.dual_mode import op_level_pair
from facm.derivative.errors import explained
from facm.derivative.inside_forward import innermost, inside_wrapper


@dataclass(frozen=True)
class OpLevel:
    """About 4.1 forward passes with the backward where PyTorch's own way takes 5, at an ordinary step's memory.

    Where the network's blocks are compiled and it offers its chain, each block's pair is compiled, too; compiled blocks
    of another network run eagerly in this pass.
    attention: "auto" chooses the tangent's kernel (see :mod:`facm.derivative.attention.dispatch`), "plain" is the
    formula, "kernel" insists on the fused one.
    """

    attention: Kernel = "auto"

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        inner = unwrapped(innermost(function))
        if has_compiled_parts(inner) and isinstance(inner, Chained) and isinstance(function, Prediction):
            return Chain(op_level=True)(function, primals, tangents)
        pair = compiled(op_level_pair) if is_compiled(inner) else op_level_pair
        with explained(inner, "OpLevel()"), uncompiled(inner):
            return inside_wrapper(partial(pair, attention=self.attention), function, primals, tangents)

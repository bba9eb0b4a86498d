"""silu(a) b of h = (a, b), in few passes; the two halves of its gradient are written where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.autograd.function import once_differentiable

from facm.core.fused.base import Fused, Tangents
from facm.core.torch_private import silu_backward


def plain_swiglu(h: Tensor) -> Tensor:
    """silu(a) * b (..., F) of the halves a and b of h (..., 2 F) (Shazeer, 2020)."""
    gate, value = h.chunk(2, dim=-1)
    return nnf.silu(gate) * value


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> tuple[Tensor, ...]:
        gate, value = h.chunk(2, dim=-1)
        opened = nnf.silu(gate)
        ctx.save_for_backward(h, opened)
        ctx.mark_non_differentiable(opened)
        ctx.set_materialize_grads(False)
        return opened * value, opened

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> Tensor | None:
        if gradient is None:
            return None
        h, opened = ctx.saved_tensors
        gate, value = h.chunk(2, dim=-1)
        out = torch.empty_like(h)
        g_gate, g_value = out.chunk(2, dim=-1)
        torch.mul(gradient, value, out=g_gate)
        silu_backward(g_gate, gate, out=g_gate)
        torch.mul(gradient, opened, out=g_value)
        return out


def _tangent(args: Sequence[Any], tangents: Tangents, kept: Sequence[Tensor]) -> Tensor | None:
    (h,), (dh,), (opened,) = args, tangents, kept
    assert dh is not None
    gate, value = h.chunk(2, dim=-1)
    d_gate, d_value = dh.chunk(2, dim=-1)
    out = torch.empty_like(opened)
    silu_backward(d_gate, gate, out=out)
    return out.mul_(value).addcmul_(opened, d_value)


swiglu = Fused(plain_swiglu, _SwiGLU, _tangent)

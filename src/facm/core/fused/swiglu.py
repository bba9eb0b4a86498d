"""silu(a) b of h = (a, b), in few passes; the two halves of its gradient are written where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from facm.core.fused.base import Fused, Tangents, backward_of, keep, kept
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
        keep(ctx, (h,), opened)
        ctx.mark_non_differentiable(opened)
        ctx.set_materialize_grads(False)
        return opened * value, opened

    @backward_of(plain_swiglu)
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor]:
        (h,), (opened,) = kept(ctx)
        gate, value = h.chunk(2, dim=-1)
        out = torch.empty_like(h)
        g_gate, g_value = out.chunk(2, dim=-1)
        torch.mul(gradient, value, out=g_gate)
        silu_backward(g_gate, gate, out=g_gate)
        torch.mul(gradient, opened, out=g_value)
        return (out,)


def _tangent(args: Sequence[Any], tangents: Tangents, others: Sequence[Tensor]) -> Tensor | None:
    (h,), (dh,), (opened,) = args, tangents, others
    assert dh is not None
    gate, value = h.chunk(2, dim=-1)
    d_gate, d_value = dh.chunk(2, dim=-1)
    out = torch.empty_like(opened)
    silu_backward(d_gate, gate, out=out)
    return out.mul_(value).addcmul_(opened, d_value)


swiglu = Fused(plain_swiglu, _SwiGLU, _tangent)

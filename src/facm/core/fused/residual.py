"""The gated sum x + gate y of a transformer block, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from facm.core.fused.base import Fused, Tangents, backward_of, into, keep, kept, without_autocast


def plain_gated_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y for tokens x, y (B, N, D) and gate (B, D)."""
    return x + gate[:, None] * y


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        keep(ctx, (x, gate, y))
        ctx.set_materialize_grads(False)
        with without_autocast(x):
            return (torch.addcmul(x, gate[:, None], y),)

    @backward_of(plain_gated_sum)
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, gate, y), _ = kept(ctx)
        g_gate = g_y = None
        if ctx.needs_input_grad[1]:
            g_gate = (gradient * y).sum(1).to(gate.dtype)
        if ctx.needs_input_grad[2]:
            g_y = torch.mul(gradient, gate[:, None], out=torch.empty_like(gradient, dtype=y.dtype))
        return gradient.to(x.dtype), g_gate, g_y


def _tangent(args: Sequence[Any], tangents: Tangents, _: Sequence[Tensor]) -> Tensor | None:
    x, gate, y = args
    dx, d_gate, dy = tangents
    dtype = torch.promote_types(x.dtype, torch.promote_types(gate.dtype, y.dtype))
    with without_autocast(x):
        out = dx
        if dy is not None:
            out = dy * gate[:, None] if out is None else torch.addcmul(out, dy, gate[:, None])
        if d_gate is not None:
            if out is None:
                out = d_gate[:, None] * y
            elif out is dx:
                out = torch.addcmul(out, d_gate[:, None], y)
            else:
                out = into(out.dtype, torch.addcmul, out, d_gate[:, None], y, like=out)
        if out is None:
            return None
        return out.clone() if out is dx else out.to(dtype)


gated_sum = Fused(plain_gated_sum, _GatedSum, _tangent)

"""RMS norm with the modulation after it, y = x / rms(x) * w (1 + scale) + shift, in few passes over memory.

The Jacobian of x / rms(x) is symmetric, r (I - h h^T / D) with h = x / rms(x) and r = 1 / rms(x). So the kernel of the
backward pass gives the tangent as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from facm.core.fused.base import Fused, Tangents, autocast_dtype, backward_of, into, keep, kept, without_autocast
from facm.core.tensors import at_least_float32
from facm.core.torch_private import rms_norm_backward, rms_norm_forward


def plain_norm_modulate(x: Tensor, weight: Tensor, shift: Tensor | None, scale: Tensor, eps: float) -> Tensor:
    """norm(x) * weight * (1 + scale) + shift for tokens x (B, N, D), weight (D,), shift (or None) and scale (B, D).

    The norm divides by the root mean square over D. Computed in at least float32 and rounded once, to autocast's type.
    """
    h = at_least_float32(x)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight * (1 + at_least_float32(scale))[:, None]
    return (h if shift is None else h + at_least_float32(shift)[:, None]).to(_out_dtype(x, weight))


def _out_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    return autocast_dtype(x) or torch.promote_types(x.dtype, weight.dtype)


class _NormModulate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, shift: Tensor | None, scale: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        dtype = _out_dtype(x, weight)
        with without_autocast(x):
            h = at_least_float32(x)
            y, root = rms_norm_forward(h, eps)
            factor = weight * (1 + at_least_float32(scale))[:, None]
            if shift is None:
                out = into(dtype, torch.mul, y, factor, like=y)
            else:
                out = into(dtype, torch.addcmul, at_least_float32(shift)[:, None], y, factor, like=y)
        keep(ctx, (x, weight, shift, scale, eps), root, factor)
        ctx.mark_non_differentiable(root, factor)
        ctx.set_materialize_grads(False)
        return out, root, factor

    @backward_of(plain_norm_modulate)
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight, shift, scale, _), (root, factor) = kept(ctx)
        h = at_least_float32(x)
        g_shift = None
        if shift is not None and ctx.needs_input_grad[2]:
            g_shift = gradient.sum(1, dtype=h.dtype).to(shift.dtype)
        g_weight = g_scale = g_x = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            # The sum over tokens of g h, h = x r: the product with r takes the sum on the way.
            summed = torch.bmm(root.mT, gradient * h)[:, 0]
            g_scale = (summed * weight).to(scale.dtype)
            g_weight = (summed * (1 + at_least_float32(scale))).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            g_x = rms_norm_backward(gradient * factor, h, root).to(x.dtype)
        return g_x, g_weight, g_shift, g_scale, None


def _tangent(args: Sequence[Any], tangents: Tangents, others: Sequence[Tensor]) -> Tensor | None:
    x, weight, shift, *_ = args
    dx, d_weight, d_shift, d_scale, _ = tangents
    if d_weight is not None:
        return None
    root, factor = others
    dtype = _out_dtype(x, weight)
    with without_autocast(x):
        h = at_least_float32(x)
        out = None if d_shift is None or shift is None else at_least_float32(d_shift)[:, None]
        if d_scale is not None:
            d_factor = weight * at_least_float32(d_scale)[:, None]
            y = h * root
            y = torch.mul(y, d_factor, out=y) if out is None else torch.addcmul(out, y, d_factor, out=y)
            out = y
        if dx is not None:
            dy = rms_norm_backward(at_least_float32(dx), h, root)
            if out is None:
                return into(dtype, torch.mul, dy, factor, like=dy)
            return into(dtype, torch.addcmul, out, dy, factor, like=dy)
        return None if out is None else out.expand(h.shape).to(dtype, copy=True)


norm_modulate = Fused(plain_norm_modulate, _NormModulate, _tangent)

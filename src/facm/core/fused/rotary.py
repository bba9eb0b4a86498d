"""Queries and keys normalised and rotated together.

A pair (a, b) of neighbours is rotated as the complex number a + i b. Everything is computed in at least float32 and
rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from facm.core.fused.base import Fused, Tangents, without_autocast
from facm.core.tensors import at_least_float32
from facm.core.torch_private import rms_norm_backward, rms_norm_forward


def plain_queries_keys(qk: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Queries and keys of qk (B, N, 2, H, D), in the same shape and dtype: divided by their root mean square over D,
    times their weight (D,), and rotated by the angles whose cosines and sines (N, D) hold every angle twice."""
    h = at_least_float32(qk)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * torch.stack([q_weight, k_weight])[:, None]
    even, odd = h.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (h * cos[:, None, None] + turned * sin[:, None, None]).to(qk.dtype)


class _QueriesKeys(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qk: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        with without_autocast(qk):
            y, root = rms_norm_forward(at_least_float32(qk), eps)
            y = y.contiguous().mul_(_weights(q_weight, k_weight))
            out = _rotate(y, _turn(cos, sin, y.dtype)).to(qk.dtype)
        ctx.save_for_backward(qk, root, q_weight, k_weight, cos, sin)
        ctx.mark_non_differentiable(root)
        ctx.set_materialize_grads(False)
        return out, root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 6
        qk, root, q_weight, k_weight, cos, sin = ctx.saved_tensors
        h = at_least_float32(qk)
        g = gradient.to(h.dtype, copy=True, memory_format=torch.contiguous_format)
        g = _rotate(g, _turn(cos, -sin, h.dtype))
        g_weights: Any = (None, None)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # Tokens first: a sum over one leading dimension is the fast one.
            g_weights = (g * h).mul_(root).flatten(0, 1).sum(0).sum(1).to(q_weight.dtype).unbind(0)
        g = rms_norm_backward(g.mul_(_weights(q_weight, k_weight)), h, root)
        return g.to(qk.dtype), *g_weights, None, None, None


def _weights(q_weight: Tensor, k_weight: Tensor) -> Tensor:
    return at_least_float32(torch.stack([q_weight, k_weight]))[:, None]


def _turn(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(i angle) (N, 1, 1, D / 2)."""
    return torch.complex(cos[:, None, None, ::2].to(dtype), sin[:, None, None, ::2].to(dtype))


def _rotate(h: Tensor, turn: Tensor) -> Tensor:
    """The pairs of h (B, N, 2, H, D), rotated in place."""
    torch.view_as_complex(h.unflatten(-1, (-1, 2))).mul_(turn)
    return h


def _tangent(args: Sequence[Any], tangents: Tangents, kept: Sequence[Tensor]) -> Tensor | None:
    qk, q_weight, k_weight, cos, sin, _ = args
    d_qk, *others = tangents
    if d_qk is None or any(d is not None for d in others):
        return None
    (root,) = kept
    with without_autocast(qk):
        out = rms_norm_backward(at_least_float32(d_qk), at_least_float32(qk), root)
        return _rotate(out.mul_(_weights(q_weight, k_weight)), _turn(cos, sin, out.dtype))


queries_keys = Fused(plain_queries_keys, _QueriesKeys, _tangent)

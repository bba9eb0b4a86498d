"""Queries and keys normalised and rotated together.

A pair (a, b) of neighbours is rotated as the complex number a + i b. Everything is computed in at least float32 and
rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from facm.core.fused.base import Fused, Tangents, backward_of, into, keep, kept, without_autocast
from facm.core.tensors import at_least_float32
from facm.core.torch_private import rms_norm_backward, rms_norm_root


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
            root = rms_norm_root(qk, eps)
            weighted = (qk * _weights(q_weight, k_weight)).contiguous()
            turned = _rotate(weighted, _turn(cos, sin, weighted.dtype))
            # Lengths of pairs commute with rotations, so that 1 / rms comes last, together with the cast.
            out = into(qk.dtype, torch.mul, turned, root, like=turned)
        keep(ctx, (qk, q_weight, k_weight, cos, sin, eps), root)
        ctx.mark_non_differentiable(root)
        ctx.set_materialize_grads(False)
        return out, root

    @backward_of(plain_queries_keys)
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (qk, q_weight, k_weight, cos, sin, _), (root,) = kept(ctx)
        g = gradient.to(root.dtype, copy=True, memory_format=torch.contiguous_format)
        g = _rotate(g, _turn(cos, -sin, g.dtype))
        g_weights: Any = (None, None)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # The sum over samples and tokens of g h r: the product with r takes the sum on the way.
            moved, roots = (z.flatten(2, 3).flatten(0, 1).transpose(0, 1) for z in (g * qk, root))
            summed = torch.bmm(roots.mT, moved).unflatten(0, (2, -1)).sum((1, 2))
            g_weights = summed.to(q_weight.dtype).unbind(0)
        g = into(qk.dtype, torch.mul, g, _weights(q_weight, k_weight), like=g)
        return rms_norm_backward(g, qk, root).to(qk.dtype), *g_weights, None, None, None


def _weights(q_weight: Tensor, k_weight: Tensor) -> Tensor:
    return at_least_float32(torch.stack([q_weight, k_weight]))[:, None]


def _turn(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(i angle) (N, 1, 1, D / 2)."""
    return torch.complex(cos[:, None, None, ::2].to(dtype), sin[:, None, None, ::2].to(dtype))


def _rotate(h: Tensor, turn: Tensor) -> Tensor:
    """The pairs of h (B, N, 2, H, D), rotated in place."""
    torch.view_as_complex(h.unflatten(-1, (-1, 2))).mul_(turn)
    return h


def _tangent(args: Sequence[Any], tangents: Tangents, others: Sequence[Tensor]) -> Tensor | None:
    qk, q_weight, k_weight, cos, sin, _ = args
    d_qk, *constant = tangents
    if d_qk is None or any(d is not None for d in constant):
        return None
    (root,) = others
    with without_autocast(qk):
        out = (rms_norm_backward(d_qk, qk, root) * _weights(q_weight, k_weight)).contiguous()
        return _rotate(out, _turn(cos, sin, out.dtype))


queries_keys = Fused(plain_queries_keys, _QueriesKeys, _tangent, constants=(3, 4))

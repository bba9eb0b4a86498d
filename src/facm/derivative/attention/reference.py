"""The forward-mode tangent of scaled dot product attention by its plain formula, for any device, dtype and mask.

    S = s q k^T + mask, P = softmax(S), O = P v
    dS = s (dq k^T + q dk^T), dP = P * (dS - rowsum(P * dS)), dO = dP v + P dv

The value O is not needed. A few tensors of all scores (..., N, M) are in memory at once, which suits images but not
video.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Three = tuple[Tensor, Tensor, Tensor]
Tangents = tuple[Tensor | None, Tensor | None, Tensor | None]  # None: the tangent is zero
HALF = (torch.float16, torch.bfloat16)


def check_tangents(primals: Three, tangents: Tangents) -> None:
    """Raise ValueError unless at least one tangent is given, each with its primal's shape and dtype."""
    if all(tangent is None for tangent in tangents):
        raise ValueError("attention: dq, dk and dv are all None, expected at least one tangent")
    for name, primal, tangent in zip("qkv", primals, tangents, strict=True):
        if tangent is not None and (tangent.shape != primal.shape or tangent.dtype != primal.dtype):
            given, expected = (f"{tuple(z.shape)} {z.dtype}" for z in (tangent, primal))
            raise ValueError(f"attention: d{name} is {given}, expected {expected} like {name}")


def default_scale(q: Tensor, scale: float | None) -> float:
    """``scale``, or 1 / sqrt(head dimension) as in PyTorch's attention where it is None."""
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def plain_tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """dO (..., N, Dv) of ``scaled_dot_product_attention(q, k, v)`` in q's dtype, to be called without grad.

    q, dq: (..., H, N, D).
    k, dk: (..., H, M, D).
    v, dv: (..., H, M, Dv). A tangent of None is zero.
    mask: Broadcasts to (..., H, N, M), bool (True takes part) or added to the scores; it must have no tangent. A row
        in which no key takes part has tangent 0, as its value in PyTorch.
    is_causal: Query i attends to keys 0 to i, whatever N and M are.
    enable_gqa: Repeat the heads of k and v to the number of q's.

    The softmax and its tangent are computed in at least float32. Products with v are in half precision for half
    precision inputs, after rowsum(P * dS) is subtracted, so that rounding does not spoil that cancellation.
    Raises ValueError for tangents of another shape or dtype, a mask with is_causal, or heads that do not divide.
    """
    check_tangents((q, k, v), (dq, dk, dv))
    if mask is not None and is_causal:
        raise ValueError("attention: is_causal = True together with a mask, expected one of them; put it into the mask")
    scale = default_scale(q, scale)
    if enable_gqa:
        k, v = _repeated(k, q), _repeated(v, q)
        dk, dv = (None if z is None else _repeated(z, q) for z in (dk, dv))

    weights = _weights(_products(q, k) * scale, mask, is_causal)
    out = None if dv is None else weights.to(v.dtype) @ dv
    if dq is not None or dk is not None:
        moved = _moved_scores(q, k, dq, dk) * scale
        moved = weights * (moved - (weights * moved).sum(-1, keepdim=True))
        through_scores = moved.to(v.dtype) @ v
        out = through_scores if out is None else out + through_scores
    assert out is not None
    return out


def _repeated(z: Tensor, q: Tensor) -> Tensor:
    heads, wanted = z.shape[-3], q.shape[-3]
    if wanted % heads:
        raise ValueError(f"attention: enable_gqa with {heads} heads of k and v, expected a divisor of q's {wanted}")
    return z.repeat_interleave(wanted // heads, dim=-3)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a b^T (..., N, M) of a (..., N, D) and b (..., M, D), in at least float32."""
    if a.dtype not in HALF:
        return a @ b.mT
    if a.device.type != "cuda":  # only CUDA returns products of halves in float32
        return a.float() @ b.float().mT
    leading = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (z.expand(*leading, *z.shape[-2:]).reshape(math.prod(leading), *z.shape[-2:]) for z in (a, b))
    return torch.bmm(a, b.mT, out_dtype=torch.float32).reshape(*leading, a.shape[-2], b.shape[-2])


def _moved_scores(q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None) -> Tensor:
    """dq k^T + q dk^T (..., N, M)."""
    if dq is not None and dk is not None:
        return _products(torch.cat([dq, q], dim=-1), torch.cat([k, dk], dim=-1))  # the sum stays in the accumulator
    if dq is not None:
        return _products(dq, k)
    assert dk is not None
    return _products(q, dk)


def _weights(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Softmax over the keys that take part, 0 in rows without any."""
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).masked_fill(scores.isneginf().all(-1, keepdim=True), 0.0)


def new_result(q: Tensor, out: Tensor) -> Tensor:
    """A new tensor for dO in q's dtype, laid out like ``out``, neighbours along D adjacent in memory."""
    result = torch.empty_like(out, dtype=q.dtype)
    return result if result.stride(-1) == 1 else torch.empty(out.shape, dtype=q.dtype, device=q.device)

"""Value and tangent of scaled dot product attention, and a record of how the tangent was computed.

The value always comes from PyTorch's own attention. The tangent comes from the fused kernel where that pays, on CUDA
with many keys, and from the plain formula elsewhere. ``chosen()`` returns all choices so far.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as nnf
from torch import Tensor

from facm.core.torch_private import constant_under_compile
from facm.derivative.attention.operator import attention_tangent, by_kernel, forget_failures
from facm.derivative.attention.reference import Tangents, Three, default_scale, plain_tangent
from facm.derivative.attention.sdpa import value_and_lse, without_lse

Kernel = Literal["auto", "plain", "kernel"]
FEWEST_KEYS = 128
"""From so many keys on the plain formula moves more bytes than q, k, v and their tangents have; counted
(benchmarks/bytes.py), not measured on a GPU yet."""

_chosen: dict[str, str] = {}
_warned: set[str] = set()


def chosen() -> dict[str, str]:
    """How the tangent was computed so far, by the inputs' shape and dtype: "kernel", or "plain: " and the reason."""
    return dict(_chosen)


def forget() -> None:
    """Start a new record, so that warnings are repeated."""
    _chosen.clear()
    _warned.clear()
    forget_failures()


def attention_pair(
    primals: Three,
    tangents: Tangents,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    kernel: Kernel = "auto",
) -> tuple[Tensor, Tensor]:
    """(O, dO), both (..., H, N, Dv), of ``scaled_dot_product_attention``: O with its graph, dO without.

    primals: q (..., H, N, D), k (..., H, M, D) and v (..., H, M, Dv).
    tangents: Their tangents, None for zero; at least one is given.
    kernel: "auto" chooses by device and size; "plain" and "kernel" force one of the two.
    The mask is constant. Under autocast the inputs are cast as PyTorch's attention casts them.
    Raises ValueError where kernel = "kernel" and the kernel cannot run, NotImplementedError for dropout or a mask with
    a tangent.
    """
    if dropout_p > 0:
        raise NotImplementedError(
            f"attention: dropout_p = {dropout_p} has no tangent, expected 0; set attention dropout to 0 or use eval()"
        )
    if attn_mask is not None and fwd.unpack_dual(attn_mask).tangent is not None:
        raise NotImplementedError("attention: attn_mask has a tangent, expected a mask that does not move")
    if kernel not in {"auto", "plain", "kernel"}:
        raise ValueError(f'attention: kernel = {kernel!r}, expected "auto", "plain" or "kernel"')
    q, k, v = _autocast(primals)
    with torch.no_grad():
        dq, dk, dv = (None if d is None else d.to(z.dtype) for z, d in zip((q, k, v), tangents, strict=True))

    if q.is_meta and kernel == "kernel" and k.shape[-2] >= FEWEST_KEYS:  # only sizes matter there
        value = nnf.scaled_dot_product_attention(q, k, v)
        return value, torch.empty_like(value)
    reason, surprising = _why_plain((q, k, v), attn_mask, is_causal, scale, enable_gqa, kernel)
    if reason is None:
        value, lse = value_and_lse(q, k, v, is_causal=is_causal, scale=scale)
        with torch.no_grad():
            tangent, reason = _by_kernel((q, k, v), (dq, dk, dv), value, lse, is_causal, scale, kernel)
        if tangent is not None:
            _note(_situation(q, k), "kernel", None)
            return value, tangent
    else:
        value = nnf.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    _note(_situation(q, k), f"plain: {reason}", reason if surprising else None)
    with torch.no_grad():
        tangent = plain_tangent(
            q, k, v, dq, dk, dv, mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return value, tangent


def _autocast(primals: Three) -> Three:
    """The inputs cast as autocast would; it does not know the operators that return the log-sum-exp."""
    device = primals[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return primals
    dtype = torch.get_autocast_dtype(device)
    q, k, v = (z if z.dtype == torch.float64 else z.to(dtype) for z in primals)
    return q, k, v


def _why_plain(
    primals: Three, mask: Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool, kernel: Kernel
) -> tuple[str | None, bool]:
    """The reason for the plain formula (None: use the kernel), and whether it deserves a warning."""
    q, k, v = primals
    if kernel == "plain" or q.is_meta:
        return "asked for", False
    if kernel == "auto" and q.device.type != "cuda":
        return f"on {q.device.type}", False
    if kernel == "auto" and k.shape[-2] < FEWEST_KEYS:
        return f"fewer than {FEWEST_KEYS} keys", False
    from facm.derivative.attention.triton_kernel import available, supports  # importing triton is slow

    reason = available() or supports(q, k, v, mask=mask, enable_gqa=enable_gqa)
    reason = reason or without_lse(q, k, v, is_causal=is_causal, scale=scale)
    if kernel == "kernel" and reason is not None:
        raise ValueError(f'attention: kernel = "kernel", expected "auto" or "plain" here: {reason}')
    return reason, True


def _by_kernel(
    primals: Three, tangents: Tangents, value: Tensor, lse: Tensor, is_causal: bool, scale: float | None, kernel: Kernel
) -> tuple[Tensor | None, str | None]:
    """The kernel's tangent, or the reason why it failed; in compiled code the operator, which decides when it runs."""
    if torch.compiler.is_compiling():
        scale = default_scale(primals[0], scale)
        return attention_tangent(*primals, *tangents, value.detach(), lse, is_causal, scale), None
    return by_kernel(*primals, *tangents, value, lse, is_causal, scale, must=kernel == "kernel")


def _situation(q: Tensor, k: Tensor) -> str:
    if torch.compiler.is_compiling():  # a name would make symbolic lengths constant
        return "compiled"
    dtype = str(q.dtype).removeprefix("torch.")
    return f"head dim {q.shape[-1]}, {dtype}, {q.shape[-2]} queries, {k.shape[-2]} keys"


@constant_under_compile  # it runs once, while a graph is traced
def _note(situation: str, choice: str, warning: str | None) -> None:
    _chosen[situation] = choice
    if warning is not None and warning not in _warned:
        _warned.add(warning)
        warnings.warn(f"attention's tangent goes through the plain formula: {warning}", stacklevel=3)

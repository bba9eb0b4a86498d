"""Attention's value together with the log-sum-exp of its scores, from the stock fused kernels.

``scaled_dot_product_attention`` computes the log-sum-exp for its backward pass and does not return it. The operators
that it calls do; they have the same derivative, so that the value's graph is the ordinary one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.nn.attention import SDPBackend

from facm.core.torch_private import (
    constant_under_compile,
    cpu_flash_attention,
    cudnn_attention,
    efficient_attention,
    flash_attention,
    fused_attention_choice,
)
from facm.derivative.attention.reference import default_scale

FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)


def _backend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float | None) -> SDPBackend | None:
    """The fused backend that PyTorch would choose inside the present ``sdpa_kernel``; None where it would not fuse."""
    if torch.compiler.is_compiling():  # the choice is no tensor, so that it cannot be part of a graph
        sizes = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
        chosen = _choice(q.device.type, q.device.index, q.dtype, *sizes, q.requires_grad, is_causal, scale)
    else:
        chosen = fused_attention_choice(q, k, v, is_causal, scale)
    return next((backend for backend in FUSED if backend.value == chosen), None)


@constant_under_compile
def _choice(
    device: str,
    index: int | None,
    dtype: torch.dtype,
    n: int,
    m: int,
    head: int,
    v_head: int,
    requires_grad: bool,
    is_causal: bool,
    scale: float | None,
) -> int:
    """What PyTorch would choose for one sample and one head of these sizes; it runs while a graph is traced."""
    place = device if index is None else f"{device}:{index}"
    shapes = (1, 1, n, head), (1, 1, m, head), (1, 1, m, v_head)
    q, k, v = (torch.empty(shape, dtype=dtype, device=place, requires_grad=requires_grad) for shape in shapes)
    return fused_attention_choice(q, k, v, is_causal, scale)


def without_lse(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False, scale: float | None = None) -> str | None:
    """The reason why no fused kernel returns a log-sum-exp for these inputs, or None if one does."""
    if q.device.type not in {"cuda", "cpu"} or q.dim() != 4 or _backend(q, k, v, is_causal, scale) is None:
        inputs = f"q {tuple(q.shape)} {q.dtype} on {q.device.type}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        return f"PyTorch has no fused attention for {inputs}, or it is switched off here"
    return None


def value_and_lse(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """O (B, H, N, D) with its graph and lse (B, H, N) without, float32 (float64 for float64).

    q is (B, H, N, D), k and v are (B, H, M, D). lse is the natural log of the sum over keys of exp(scale q k^T). O is
    what ``scaled_dot_product_attention`` returns, from the kernel that it would choose.
    Raises ValueError where no fused kernel takes these inputs.
    """
    if (reason := without_lse(q, k, v, is_causal=is_causal, scale=scale)) is not None:
        raise ValueError(f"value_and_lse: {reason}")
    backend = _backend(q, k, v, is_causal, scale)
    scale = default_scale(q, scale)  # for the head dimension before it is padded
    if q.device.type == "cpu":
        out, lse = cpu_flash_attention(q, k, v, is_causal, scale)
    elif backend == SDPBackend.FLASH_ATTENTION:
        # This operator needs a multiple of 8; scaled_dot_product_attention pads in the same way.
        padded = [nnf.pad(z, (0, -z.shape[-1] % 8)) if z.shape[-1] % 8 else z for z in (q, k, v)]
        out, lse = flash_attention(padded[0], padded[1], padded[2], is_causal, scale)
        out = out[..., : v.shape[-1]]
    elif backend == SDPBackend.EFFICIENT_ATTENTION:
        out, lse = efficient_attention(q, k, v, is_causal, scale)
        lse = lse[..., : q.shape[-2]]  # padded to a multiple of 32 queries
    else:
        out, lse = cudnn_attention(q, k, v, is_causal, scale)
    return out, lse.detach().reshape(q.shape[:-1])  # cuDNN: (B, H, N, 1)

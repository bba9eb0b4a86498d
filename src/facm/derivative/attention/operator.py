"""The tangent of attention as one operator, which torch.compile takes into its graph as it is.

The compiler cannot see through a Triton kernel that Python launches. As an operator with the shape of its result it
needs not, and eager code reaches the same kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from facm.derivative.attention.reference import new_result, plain_tangent

_failed: dict[tuple[object, ...], str] = {}  # kernels that failed to compile are not tried again


def forget_failures() -> None:
    _failed.clear()


def by_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float | None,
    must: bool = False,
) -> tuple[Tensor | None, str | None]:
    """The kernel's tangent, or the reason why it failed. must: raise in place of a reason."""
    from facm.derivative.attention.triton_kernel import kernel_tangent

    build = (q.device, q.dtype, q.shape[-1], is_causal, *(d is None for d in (dq, dk, dv)))
    if not must and build in _failed:
        return None, _failed[build]
    try:
        return kernel_tangent(q, k, v, dq, dk, dv, out, lse, is_causal=is_causal, scale=scale), None
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Compilers, drivers and header files can be missing in many ways, which must not end a long run.
        if must:
            raise
        _failed[build] = f"the kernel failed with {type(error).__name__}: {str(error).strip()[:200]}"
        return None, _failed[build]


def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> Tensor:
    from facm.derivative.attention.triton_kernel import available, supports

    tangent = None
    if (available() or supports(q, k, v)) is None:
        tangent, _ = by_kernel(q, k, v, dq, dk, dv, out, lse, is_causal, scale)
    if tangent is None:
        tangent = plain_tangent(q, k, v, dq, dk, dv, is_causal=is_causal, scale=scale)
    expected = new_result(q, out)
    return tangent if tangent.stride() == expected.stride() else expected.copy_(tangent)


def _shape(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> Tensor:
    return new_result(q, out)


SCHEMA = "(Tensor q, Tensor k, Tensor v, Tensor? dq, Tensor? dk, Tensor? dv, Tensor out, Tensor lse, bool is_causal, "
SCHEMA += "float scale) -> Tensor"

attention_tangent = torch.library.custom_op("facm::attention_tangent", _operator, mutates_args=(), schema=SCHEMA)
"""dO (B, H, N, D) from q, k, v, their tangents (None: zero), and O and its log-sum-exp (B, H, N): the kernel's where
there is one, otherwise the plain formula's."""
attention_tangent.register_fake(_shape)

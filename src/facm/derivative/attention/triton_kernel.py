"""The forward-mode tangent of scaled dot product attention in one pass over the keys, as a Triton kernel.

The value O and its log-sum-exp from any stock kernel determine the softmax, without running maximum and rescaling.

    S = s q k^T, P = exp(S - lse), H = P * s (dq k^T + q dk^T), dO = H v + P dv - rowsum(H) O

It takes five matrix products where the value takes two, and three without dk and dv. It has no backward pass, since
the tangent is only used under stop-gradient. It is tested in Triton's interpreter and compiled for sm_80 and sm_90, and
has not run on a GPU yet.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facm.derivative.attention.reference import check_tangents, default_scale, new_result

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)  # fixed when a kernel is defined

LOG2E = math.log2(math.e)  # exp(x) = exp2(x log2 e)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_HEAD = 256


def _jit(function):
    return function if triton is None else triton.jit(function)


# Two chunks of D1 and D2 columns (0: none) cover the head dimension D: 72 as 64 + 16 rather than padded to 128.


@_jit
def _load_chunk(pointer, stride, count, D, column, WIDTH, ROWS):
    """Rows (ROWS, WIDTH) starting at ``column``, zero beyond ``count`` rows and D columns."""
    rows, columns = tl.arange(0, ROWS)[:, None], column + tl.arange(0, WIDTH)[None, :]
    return tl.load(pointer + rows * stride + columns, mask=(rows < count) & (columns < D), other=0.0)


@_jit
def _load(pointer, stride, count, D, D1, D2, ROWS):
    first = _load_chunk(pointer, stride, count, D, 0, D1, ROWS)
    second = first
    if D2 > 0:
        second = _load_chunk(pointer, stride, count, D, D1, D2, ROWS)
    return first, second


@_jit
def _store_chunk(pointer, stride, count, D, values, column, WIDTH, ROWS):
    rows, columns = tl.arange(0, ROWS)[:, None], column + tl.arange(0, WIDTH)[None, :]
    mask = (rows < count) & (columns < D)
    tl.store(pointer + rows * stride + columns, values.to(pointer.dtype.element_ty), mask=mask)


@_jit
def _add_products(total, a1, a2, b1, b2, D2, PRECISION):
    """total + a b^T over both chunks."""
    total = tl.dot(a1, tl.trans(b1), total, input_precision=PRECISION)
    if D2 > 0:
        total = tl.dot(a2, tl.trans(b2), total, input_precision=PRECISION)
    return total


@_jit
def _add_mixture(total1, total2, weights, v1, v2, D2, PRECISION):
    """total + weights v, chunk by chunk."""
    total1 = tl.dot(weights, v1, total1, input_precision=PRECISION)
    if D2 > 0:
        total2 = tl.dot(weights, v2, total2, input_precision=PRECISION)
    return total1, total2


@_jit
def _tangent(  # type: ignore[no-untyped-def]  # noqa: PLR0915
    Q, K, V, DQ, DK, DV, VALUE, LSE, OUT, scale, heads, n_queries, n_keys,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    dq_batch, dq_head, dq_row, dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row,
    o_batch, o_head, o_row, out_batch, out_head, out_row,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, HAS_DQ: tl.constexpr, HAS_DK: tl.constexpr,
    HAS_DV: tl.constexpr, CAUSAL: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, LOG2E: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    # A grid of one dimension, since the second is limited to 65535. Neighbours share a head and thus its keys in cache.
    blocks = tl.cdiv(n_queries, BM)
    block, pair = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    batch, head, start = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64), block.to(tl.int64) * BM
    queries = n_queries - block * BM  # number of remaining queries

    # Strides count UNIT elements, so that the compiler knows the alignment of rows: 72 is no multiple of 16, and it
    # would otherwise load single halves. Offsets of tiles have 64 bits, those within a tile 32 bits.
    Q += (batch * q_batch + head * q_head + start * q_row) * UNIT
    VALUE += (batch * o_batch + head * o_head + start * o_row) * UNIT
    OUT += (batch * out_batch + head * out_head + start * out_row) * UNIT
    K += (batch * k_batch + head * k_head) * UNIT
    V += (batch * v_batch + head * v_head) * UNIT

    q1, q2 = _load(Q, q_row * UNIT, queries, D, D1, D2, BM)
    dq1, dq2 = q1, q2
    if HAS_DQ:
        DQ += (batch * dq_batch + head * dq_head + start * dq_row) * UNIT
        dq1, dq2 = _load(DQ, dq_row * UNIT, queries, D, D1, D2, BM)
    if HAS_DK:
        DK += (batch * dk_batch + head * dk_head) * UNIT
    if HAS_DV:
        DV += (batch * dv_batch + head * dv_head) * UNIT
    rows = tl.arange(0, BM)
    lse = tl.load(LSE + pair.to(tl.int64) * n_queries + start + rows, mask=rows < queries, other=float("inf"))
    lse *= LOG2E

    total1 = tl.zeros([BM, D1], tl.float32)
    total2 = tl.zeros([BM, D2 if D2 > 0 else 16], tl.float32)
    mean = tl.zeros([BM], tl.float32)
    end = n_keys
    if CAUSAL:
        end = tl.minimum(n_keys, (block + 1) * BM)
    for first in tl.range(0, end, BN):
        keys = n_keys - first  # number of remaining keys
        columns = tl.arange(0, BN)
        k1, k2 = _load(K, k_row * UNIT, keys, D, D1, D2, BN)
        scores = _add_products(tl.zeros([BM, BN], tl.float32), q1, q2, k1, k2, D2, PRECISION)
        weights = tl.exp2(scores * (scale * LOG2E) - lse[:, None])
        takes_part = columns[None, :] < keys
        if CAUSAL:
            takes_part = takes_part & (block * BM + rows[:, None] >= first + columns[None, :])
        weights = tl.where(takes_part, weights, 0.0)
        if HAS_DQ or HAS_DK:
            moved = tl.zeros([BM, BN], tl.float32)
            if HAS_DQ:
                moved = _add_products(moved, dq1, dq2, k1, k2, D2, PRECISION)
            if HAS_DK:
                dk1, dk2 = _load(DK, dk_row * UNIT, keys, D, D1, D2, BN)
                moved = _add_products(moved, q1, q2, dk1, dk2, D2, PRECISION)
                DK += BN * dk_row * UNIT
            v1, v2 = _load(V, v_row * UNIT, keys, D, D1, D2, BN)
            moved = (weights * (moved * scale)).to(v1.dtype)
            mean += tl.sum(moved.to(tl.float32), 1)  # of the rounded weights, so that their mean cancels
            total1, total2 = _add_mixture(total1, total2, moved, v1, v2, D2, PRECISION)
        if HAS_DV:
            dv1, dv2 = _load(DV, dv_row * UNIT, keys, D, D1, D2, BN)
            total1, total2 = _add_mixture(total1, total2, weights.to(dv1.dtype), dv1, dv2, D2, PRECISION)
            DV += BN * dv_row * UNIT
        K += BN * k_row * UNIT
        V += BN * v_row * UNIT

    o1, o2 = _load(VALUE, o_row * UNIT, queries, D, D1, D2, BM)
    _store_chunk(OUT, out_row * UNIT, queries, D, total1 - mean[:, None] * o1.to(tl.float32), 0, D1, BM)
    if D2 > 0:
        _store_chunk(OUT, out_row * UNIT, queries, D, total2 - mean[:, None] * o2.to(tl.float32), D1, D2, BM)


def available() -> str | None:
    """The reason why the kernel cannot run on this machine, or None if it can."""
    if triton is None:
        return "triton is not installed"
    if not torch.cuda.is_available() and not INTERPRETED:
        return "there is no CUDA device (and TRITON_INTERPRET is not set to 1)"
    return None


def supports(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, enable_gqa: bool = False) -> str | None:
    """The reason why the kernel does not take these inputs, or None if it does."""
    if mask is not None:
        return "masks go through the plain formula"
    if enable_gqa:
        return "grouped queries (enable_gqa) go through the plain formula"
    return _wrong_shapes(q, k, v) or _wrong_numbers(q, k, v)


def _wrong_shapes(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.dim() == k.dim() == v.dim() == 4:
        return f"{shapes}, expected (batch, heads, tokens, head dimension)"
    head, v_head = q.shape[-1], v.shape[-1]
    if not 1 <= head <= LARGEST_HEAD:
        return f"head dimension {head}, expected at most {LARGEST_HEAD}"
    if v_head != head:
        return f"head dimension {v_head} of v, expected {head} like q's"
    if k.shape[-1] != head or k.shape[:2] != q.shape[:2] or v.shape != k.shape:
        return f"{shapes}, expected the same but for the number of queries"
    return None


def _wrong_numbers(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        given, known = (", ".join(map(_short, dtypes)) for dtypes in ([z.dtype for z in (q, k, v)], DTYPES))
        return f"q, k, v have dtypes {given}, expected one of {known} for all"
    if q.device.type != "cuda" and not INTERPRETED:
        return f"q is on {q.device.type}, expected cuda"
    if q.dtype == torch.bfloat16 and INTERPRETED:  # it would multiply the bits as integers
        return "q has dtype bfloat16, expected float16 or float32 in Triton's interpreter"
    return None


def kernel_tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    out: Tensor,
    lse: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """dO (B, H, N, D) of ``scaled_dot_product_attention(q, k, v)``, in q's dtype and laid out like ``out``.

    q, dq: (B, H, N, D).
    k, v, dk, dv: (B, H, M, D). A tangent of None is zero.
    out, lse: The value (B, H, N, D) and its log-sum-exp (B, H, N), from ``value_and_lse``.

    Any strides are allowed; a tensor is copied only where neighbours along D are not adjacent in memory. Half precision
    is multiplied in half precision and summed in float32; float32 never uses TF32.
    Raises ValueError where the kernel cannot run on this machine or for these inputs.
    """
    if (reason := available() or supports(q, k, v)) is not None:
        raise ValueError(f"attention kernel: {reason}")
    check_tangents((q, k, v), (dq, dk, dv))
    if out.shape != q.shape or lse.shape != q.shape[:-1]:
        given = f"out {tuple(out.shape)} and lse {tuple(lse.shape)}"
        raise ValueError(f"attention kernel: {given}, expected {tuple(q.shape)} and {tuple(q.shape[:-1])}")

    batch, heads, n_queries, head = q.shape
    result = new_result(q, out)
    if result.numel() == 0:
        return result
    inputs = [None if z is None else _rows_together(z) for z in (q, k, v, dq, dk, dv, out)]
    steps = [(0, 0, 0) if z is None else z.stride()[:3] for z in (*inputs, result)]
    unit = math.gcd(8, *(step for three in steps for step in three))  # the largest of 8, 4, 2, 1 that divides all
    first, second = _chunks(head)
    tile = _tile(head, q.element_size())
    with torch.cuda.device_of(q):
        _tangent[(-(-n_queries // tile["BM"]) * batch * heads,)](
            *inputs, lse.float().contiguous(), result, default_scale(q, scale), heads, n_queries, k.shape[2],
            *(step // unit for three in steps for step in three),
            D=head, D1=first, D2=second, HAS_DQ=dq is not None, HAS_DK=dk is not None, HAS_DV=dv is not None,
            CAUSAL=is_causal, UNIT=unit, PRECISION="ieee" if q.dtype == torch.float32 else "tf32", LOG2E=LOG2E, **tile,
        )  # fmt: skip
    return result


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rows_together(z: Tensor) -> Tensor:
    return z if z.stride(-1) == 1 else z.contiguous()


def _chunks(head: int) -> tuple[int, int]:
    """Widths of the two chunks of columns: powers of 2, at least 16 for matrix products; the second may be 0."""
    first = max(16, 1 << (head.bit_length() - 1))
    return first, 0 if head <= first else max(16, 1 << (head - first - 1).bit_length())


def _tile(head: int, bytes_each: int) -> dict[str, int]:
    """Queries (BM) and keys (BN) per tile, and their schedule; the speed on a GPU is not measured yet.

    The sizes follow the compiler's reports for sm_80 and sm_90: registers spill little up to 192 columns (128 in
    float32), and shared memory stays within 99 KiB on sm_80, the limit of small Ampere and Ada cards, and within
    144 KiB on sm_90.
    """
    if bytes_each == 2:
        table = {96: (128, 64, 8, 2), 128: (128, 32, 8, 2), 192: (64, 16, 4, 2), LARGEST_HEAD: (32, 32, 4, 2)}
    else:  # without tensor cores
        table = {96: (32, 16, 8, 2), LARGEST_HEAD: (16, 16, 8, 1)}
    chosen = table[min(limit for limit in table if head <= limit)]
    return dict(zip(("BM", "BN", "num_warps", "num_stages"), chosen, strict=True))

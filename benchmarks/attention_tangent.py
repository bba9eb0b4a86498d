"""Times attention's tangent, kernel against plain formula, on a GPU.

    python benchmarks/attention_tangent.py [--json FILE] [--dtype bfloat16] [--longest 32768]

Shapes are those of LightningDiT-XL/1 (16 heads of dimension 72), for images of 256 to 4096 tokens and for the lengths
of video. Each row: the value alone by PyTorch's own attention, the tangent by the compiled plain formula and by the
kernel (median milliseconds), the largest memory of each, and how far the two tangents are apart. Needs CUDA and triton.

This script has not been run on a GPU yet: there are no numbers to quote.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from facm.derivative.attention.reference import plain_tangent
from facm.derivative.attention.sdpa import value_and_lse
from facm.derivative.attention.triton_kernel import available, kernel_tangent

HEADS, HEAD_DIMENSION = 16, 72
SHAPES = ((256, 32), (1024, 8), (4096, 2), (8192, 1), (16384, 1), (32768, 1), (65536, 1))  # tokens, batch
COLUMNS = ("tokens", "batch", "value_ms", "plain_ms", "kernel_ms", "plain_MiB", "kernel_MiB", "apart")


def timed(function: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """(median milliseconds, MiB above what was there) of a call, after three to warm up."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times), (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(tokens: int, batch: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """One row; what does not fit into memory is None."""

    def qkv() -> tuple[Tensor, Tensor, Tensor]:
        """As a transformer makes them: one product, then views."""
        joint = torch.randn(batch, tokens, 3 * HEADS * HEAD_DIMENSION, device="cuda", dtype=dtype)
        q, k, v = joint.unflatten(-1, (3, HEADS, HEAD_DIMENSION)).permute(2, 0, 3, 1, 4)
        return q, k, v

    primals, tangents = qkv(), qkv()
    out, lse = value_and_lse(*primals)
    compiled = torch.compile(plain_tangent, dynamic=False)
    calls: dict[str, Callable[[], Tensor]] = {
        "value": lambda: nnf.scaled_dot_product_attention(*primals),
        "plain": lambda: compiled(*primals, *tangents),
        "kernel": lambda: kernel_tangent(*primals, *tangents, out, lse),
    }
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"tokens": tokens, "batch": batch}
    for name, call in calls.items():
        try:
            row[f"{name}_ms"], row[f"{name}_MiB"] = timed(call, repeats)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    if row["plain_ms"] is not None and row["kernel_ms"] is not None:
        a, b = calls["plain"]().float(), calls["kernel"]().float()
        row["apart"] = ((a - b).norm() / a.norm()).item()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Times attention's tangent, kernel against plain formula, on a GPU.")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--longest", type=int, default=SHAPES[-1][0], help="leave out sequences of more tokens")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("attention_tangent.py: there is no CUDA device, expected one; nothing was measured")
    if (reason := available()) is not None:
        raise SystemExit(f"attention_tangent.py: {reason}; nothing was measured")

    torch.manual_seed(0)
    rows = []
    print(
        f"{torch.cuda.get_device_name()}, {options.dtype}, {HEADS} heads of {HEAD_DIMENSION}, torch {torch.__version__}"
    )
    print("".join(f"{name:>12}" for name in COLUMNS))
    with torch.no_grad():
        for tokens, batch in SHAPES:
            if tokens > options.longest:
                continue
            rows.append(measure(tokens, batch, getattr(torch, options.dtype), options.repeats))
            cells = ("-" if rows[-1][name] is None else f"{rows[-1][name]:.4g}" for name in COLUMNS)
            print("".join(f"{cell:>12}" for cell in cells), flush=True)
    if options.json is not None:
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "dtype": options.dtype}
        options.json.write_text(
            json.dumps(device | {"heads": HEADS, "head_dimension": HEAD_DIMENSION, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()

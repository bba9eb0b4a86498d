"""Where a distillation step of a given size spends its time if nothing waits: FLOPs of products, bytes of all else.

    python benchmarks/bytes.py                              # LightningDiT-XL/1, bf16, batch 32: nothing is computed
    python benchmarks/bytes.py --strategy chain --batch 64
    python benchmarks/bytes.py --tflops 400 --tb-per-s 1.6  # another GPU
    python benchmarks/bytes.py --json results/bytes.json

One step runs on the meta device, where tensors have sizes and no content, and every operation is written down: what
it reads, what it writes, how many multiply-adds it takes. *eager*: each operation reads its inputs from memory and
writes its outputs to it. *compiled*: all that lies between two products is taken for one kernel, which reads once what
was made outside of it and writes what is needed after it; an estimate, for Inductor fuses a little less and recomputes
some of what is counted as written. A product, attention included, takes its FLOPs or its bytes, whichever is longer.

Counted as on a GPU: attention, its tangent and RMS norm by the fused kernels that there are, casts as autocast makes
them.
What a second does (--tflops, --tb-per-s) is assumed, not measured: by default an H100 at what large products and copies
reach of its 989 TFLOP/s and 3.35 TB/s.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry

from facm.core.fused import norm, rotary
from facm.core.fused.base import Fused
from facm.core.torch_private import (
    TorchDispatchMode,
    backward,
    inside_dual_level,
    overload_packet,
    rms_norm_backward,
    storage_key,
    tree_leaves,
)
from facm.core.types import Batch
from facm.derivative import Chain, Derivative, NoGraph, OpLevel, WholeNetwork, tangent_rules
from facm.derivative.attention.dispatch import attention_pair
from facm.distributed.block_transforms import prepare
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.networks.lightning_dit import lightning_dit
from facm.objectives.facm import FACM
from facm.training.memory_plan.rehearsal import AsOnDevice, built

CLASSES = 1000
KINDS = {  # the parts of a network, by the innermost module that is running or the fused operation
    "RMSNorm": "norm",
    "LayerNorm": "norm",
    "RotaryPositions": "rotary",
    "Attention": "attention",
    "SwiGLU": "mlp",
    "MLP": "mlp",
    "Block": "residual",
    "FinalLayer": "residual",
    "Linear": "linear",
    "Conv2d": "linear",
    "plain_norm_modulate": "norm, modulation",
    "plain_gated_sum": "residual",
    "plain_queries_keys": "q, k norm, rotary",
    "plain_swiglu": "mlp",
}
ROWS = ("products", "attention", "q, k norm, rotary", "norm, modulation", "norm", "rotary", "residual", "mlp", "linear")
ROWS += ("embedding", "loss", "cast")
ROWS += ("clip", "adamw", "ema")
DERIVATIVES: dict[str, Derivative] = {
    "op_level": OpLevel("kernel"),
    "op_level, plain attention": OpLevel("plain"),
    "chain": Chain(),
    "no_graph": NoGraph(),
    "whole": WholeNetwork(),
}


@dataclass
class Operation:
    """One call. kind: its row of the table. reads, writes: bytes by storage. flops: of a product, otherwise 0."""

    kind: str
    name: str
    reads: dict[int, int]
    writes: dict[int, int]
    flops: int = 0

    @property
    def bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


@dataclass
class Trace:
    """All operations of a step, in order. kept: their tensors, so that no storage's key is used twice."""

    operations: list[Operation] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    paused: int = 0

    @property
    def kind(self) -> str:
        node = torch._C._current_autograd_node()  # type: ignore[attr-defined]
        if node is not None and "kind" in node.metadata:
            return node.metadata["kind"]
        return self.modules[-1] if self.modules else "loss"

    def add(
        self, name: str, reads: list[Tensor], writes: list[Tensor], flops: int = 0, kind: str | None = None
    ) -> None:
        self.kept += [*reads, *writes]
        self.operations.append(Operation(kind or self.kind, name, _bytes(reads), _bytes(writes), flops))

    def tag(self, out: Any, given: Any) -> None:
        """Give the nodes of the graph between ``given`` and ``out`` the row by which their backward pass is counted."""
        before = {x.grad_fn for x in tree_leaves(given) if isinstance(x, Tensor)}
        pending = [x.grad_fn for x in tree_leaves(out) if isinstance(x, Tensor)]
        while pending:
            node = pending.pop()
            if node is None or node in before or "kind" in node.metadata or node.name().endswith("AccumulateGrad"):
                continue
            node.metadata["kind"] = self.modules[-1] if self.modules else "loss"
            pending += [following for following, _ in node.next_functions]

    @contextmanager
    def inside(self, kind: str) -> Iterator[None]:
        self.modules.append(kind)
        yield
        self.modules.pop()

    @contextmanager
    def pause(self) -> Iterator[None]:
        self.paused += 1
        yield
        self.paused -= 1


def _bytes(tensors: list[Tensor]) -> dict[int, int]:
    """The bytes of each storage that are touched: an expanded dimension is read once."""
    touched: dict[int, int] = defaultdict(int)
    for tensor in {(storage_key(x), x.storage_offset(), tuple(x.shape), x.stride()): x for x in tensors}.values():
        elements = math.prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
        touched[storage_key(tensor)] += elements * tensor.element_size()
    return touched


class Recorder(TorchDispatchMode):
    """Writes down what PyTorch dispatches, forward and backward."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.trace.paused or func.is_view or overload_packet(func).__name__ in FREE:
            return out
        given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        made = [a for a in tree_leaves(out) if isinstance(a, Tensor)]
        keys = {storage_key(x) for x in given}
        written = [made[i] for i in range(len(made)) if storage_key(made[i]) not in keys]
        written += [a for a in _written(func, args, kwargs or {})]
        if not written:  # an alias, such as a reshape that copies nothing
            return out
        name = overload_packet(func).__name__
        if name.startswith(FILLS):
            given = []
        count = flop_registry.get(overload_packet(func))
        flops = count(*args, **(kwargs or {}), out_val=out) if count is not None else 0
        cast = name in ("_to_copy", "copy_") and given and given[-1].dtype != made[0].dtype
        if cast:
            name = f"{_short(given[-1])} to {_short(made[0])}: {self.trace.kind}"
        self.trace.add(name, given, written, flops, "cast" if cast else None)
        return out


def _short(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


FREE = {
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "_make_dual",
    "_unpack_dual",
    "detach",
}
FILLS = ("zero", "ones", "fill", "full", "new_zeros", "new_ones", "new_full", "arange", "randn", "rand")


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes into."""
    out = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            out += [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return out


class Tagging(TorchFunctionMode):
    """Gives every node of the graph the row of the operation that made it, by which its backward pass is counted; puts
    the fused kernels of a GPU in place of what PyTorch has on the meta device."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if isinstance(func, Fused):
            with self.trace.inside(KINDS[func.__name__]):
                out = func(*args)
                self.trace.tag(out, given)
        elif func in (nnf.rms_norm, torch.rms_norm) and not _any_moves(given):
            out = FusedNorm.apply(self.trace, *_norm_arguments(*args, **kwargs))
        elif func is nnf.scaled_dot_product_attention and not _any_moves(given):
            out = FusedAttention.apply(self.trace, *args[:3])
        else:
            out = func(*args, **kwargs)
        self.trace.tag(out, given)
        return out


@contextmanager
def fused_operations(trace: Trace, bf16: bool, formulas: bool) -> Iterator[None]:
    """This package's fused operations, each in its row, with the kernels that they call on a GPU; formulas: as compiled
    code has them."""
    pair = Fused.pair

    def formula(self: Fused, *args: Any) -> Tensor:
        with trace.inside(KINDS[self.__name__]):
            out = self.formula(*args)
            trace.tag(out, args)
            return out

    def marked(self: Fused, args: Any, tangents: Any) -> Any:
        with trace.inside(KINDS[self.__name__]):
            out = pair(self, args, tangents)
            trace.tag(None if out is None else out[0], args)
            return out

    def dense(x: Tensor) -> Tensor:
        """As the kernels make it first, where it is not."""
        if x.is_contiguous():
            return x
        with trace.pause():
            copy = x.contiguous()
        trace.add("contiguous", [x], [copy])
        return copy

    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = dense(x)
        with trace.pause():
            out, root = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1)
        trace.add("_fused_rms_norm", [x], [out, root])
        return out, root

    def backward(gradient: Tensor, x: Tensor, root: Tensor) -> Tensor:
        return rms_norm_backward(dense(gradient), dense(x), root)

    def pair_of_attention(primals: Any, tangents: Any, *, kernel: str = "auto", **options: Any) -> Any:
        if kernel == "plain":
            return attention_pair(primals, tangents, kernel="plain", **options)
        value, tangent = attention_pair(primals, tangents, kernel="kernel", **options)
        (q, k, _), moving = primals, [d for d in tangents if d is not None]
        lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
        products = 3 + sum(d is not None for d in tangents[1:]) - (tangents[0] is None)  # S, dq k, q dk, H v, P dv
        trace.add(
            "attention tangent", [*primals, *moving, value, lse], [tangent], products * 2 * q.numel() * k.shape[-2]
        )
        return value, tangent

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(tangent_rules, "attention_pair", pair_of_attention))
        stack.enter_context(mock.patch.object(Fused, "pair", marked))
        if formulas:
            stack.enter_context(mock.patch.object(Fused, "__call__", formula))
        if bf16:
            stack.enter_context(mock.patch.object(norm, "autocast_dtype", return_value=torch.bfloat16))
        for module in (norm, rotary):
            if module is norm:
                stack.enter_context(mock.patch.object(module, "rms_norm_forward", forward))
            stack.enter_context(mock.patch.object(module, "rms_norm_backward", backward))
        yield


def _any_moves(tensors: list[Tensor]) -> bool:
    return inside_dual_level() and any(
        x.is_floating_point() and fwd.unpack_dual(x).tangent is not None for x in tensors
    )


def _norm_arguments(input: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Any:
    return input, weight


class FusedNorm(torch.autograd.Function):
    """RMS norm as aten._fused_rms_norm on a GPU: one pass forward, one backward, and one number a row kept."""

    @staticmethod
    def forward(ctx: Any, trace: Trace, x: Tensor, weight: Tensor | None) -> Tensor:
        with trace.pause():
            out, root = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        trace.add("_fused_rms_norm", [x] + [weight] * (weight is not None), [out, root])
        ctx.save_for_backward(x, root, weight)
        ctx.trace = trace
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, root, weight = ctx.saved_tensors
        with ctx.trace.pause():
            out = [torch.empty_like(z) for z in (x, weight) if z is not None]
        reads = [z for z in (gradient, x, root, weight) if z is not None]
        ctx.trace.add("_fused_rms_norm_backward", reads, out)
        return None, out[0], out[1] if weight is not None else None


class FusedAttention(torch.autograd.Function):
    """Attention by a fused kernel: two products forward, five backward, and the log-sum-exp kept."""

    @staticmethod
    def forward(ctx: Any, trace: Trace, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with trace.pause():
            out = q.new_empty(*q.shape[:-1], v.shape[-1])
            lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.flops, ctx.trace = 2 * q.numel() * k.shape[-2], trace
        trace.add("attention", [q, k, v], [out, lse], 2 * ctx.flops)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        with ctx.trace.pause():
            out = [torch.empty_like(z) for z in ctx.saved_tensors[:3]]
        ctx.trace.add("attention backward", [gradient, *ctx.saved_tensors], out, 5 * ctx.flops)
        return None, *out


# One step


def step(options: argparse.Namespace, formulas: bool) -> Trace:
    """The operations of one step, its update included."""
    config = lightning_dit(f"{options.size}/1", input_size=options.side, num_classes=CLASSES)
    network, teacher = built(config), built(config).requires_grad_(False)
    prepare(list(network.blocks), options.checkpointing, compiled=False)  # type: ignore[arg-type]
    objective = FACM(Labels(CLASSES), TeacherVelocity(Guidance()), derivative=DERIVATIVES[options.strategy])
    trace, bf16 = Trace(), options.precision == "bf16"
    for each in (network, teacher):
        for module in each.modules():
            _mark(module, trace)
    with torch.device("meta"):
        x_1 = torch.empty(options.batch, config.in_channels, options.side, options.side)
        batch = Batch(x_1, torch.zeros(options.batch, dtype=torch.long))
        with (
            fused_operations(trace, bf16, formulas),
            Recorder(trace),
            AsOnDevice(bf16, fused=False),
            Tagging(trace),
        ):
            for term in objective.loss_terms(network, batch, torch.Generator(), teacher):
                backward(term().total)
    _update(network, trace)
    return trace


def _mark(module: nn.Module, trace: Trace) -> None:
    name = type(module).__name__
    kind = KINDS.get(name) or ("embedding" if "Embedding" in name else None)
    if kind is None:
        return

    def done(_: Any, args: Any, out: Any) -> None:
        trace.tag(out, args)
        trace.modules.pop()

    module.register_forward_pre_hook(lambda *_: trace.modules.append(kind))
    module.register_forward_hook(done)


def _update(network: nn.Module, trace: Trace) -> None:
    """The gradient's norm, AdamW's fused kernel, which clips and keeps what it clipped, and two averages."""
    trained = [p for p in network.parameters() if p.requires_grad]
    flat = [torch.empty(sum(p.numel() for p in trained), device="meta") for _ in range(6)]
    p, g, m, v, first, second = flat
    trace.add("norm", [g], [], kind="clip")
    trace.add("adamw", [p, g, m, v], [p, g, m, v], kind="adamw")
    for average in (first, second):
        trace.add("lerp", [p, average], [average], kind="ema")


# Counting


def fused(trace: Trace) -> list[Operation]:
    """The operations between two products as one kernel: it reads once, and writes what is read after it."""
    last_read: dict[int, int] = {}
    for i, operation in enumerate(trace.operations):
        for key in operation.reads:
            last_read[key] = i
    out: list[Operation] = []
    region: list[tuple[int, Operation]] = []

    def close() -> None:
        made: dict[int, int] = {}
        charged: dict[str, dict[int, int]] = defaultdict(dict)
        written: dict[str, dict[int, int]] = defaultdict(dict)
        for _, operation in region:
            for key, size in operation.reads.items():
                if key not in made and not any(key in reads for reads in charged.values()):
                    charged[operation.kind][key] = size
            made |= dict.fromkeys(operation.writes, 0)
        end = region[-1][0] if region else 0
        for _, operation in region:
            for key, size in operation.writes.items():
                if last_read.get(key, -1) > end or operation.kind in ("adamw", "ema", "clip"):
                    written[operation.kind][key] = size
        for kind in {**charged, **written}:
            out.append(Operation(kind, "fused", charged[kind], written[kind]))
        region.clear()

    for i, operation in enumerate(trace.operations):
        if operation.flops or operation.kind in ("clip", "adamw", "ema"):
            close()
            out.append(operation)
        else:
            region.append((i, operation))
    close()
    return out


def table(operations: list[Operation], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rows = {name: {"gflop": 0.0, "gb": 0.0, "ms": 0.0, "calls": 0} for name in ROWS}
    for operation in operations:
        product = operation.flops > 0 and "attention" not in operation.name and operation.kind != "attention"
        row = rows["products" if product else operation.kind]
        seconds = max(operation.flops / (1e12 * options.tflops), operation.bytes / (1e12 * options.tb_per_s))
        row["gflop"] += operation.flops / 1e9
        row["gb"] += operation.bytes / 1e9
        row["ms"] += 1e3 * seconds
        row["calls"] += 1
    return rows


def show(name: str, rows: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    total = {key: sum(row[key] for row in rows.values()) for key in ("gflop", "gb", "ms", "calls")}
    print(f"{name:24}{'TFLOP':>9}{'GB':>9}{'ms':>9}{'share':>8}{'calls':>8}")
    for kind, row in [*rows.items(), ("total", total)]:
        share = row["ms"] / total["ms"]
        print(
            f"{kind:24}{row['gflop'] / 1e3:9.2f}{row['gb']:9.1f}{row['ms']:9.1f}{100 * share:7.0f}%{row['calls']:8.0f}"
        )
    print(
        f"not products: {total['gb'] - rows['products']['gb']:.1f} GB, {total['ms'] - rows['products']['ms']:.1f} ms\n"
    )


def listed(trace: Trace, kinds: Sequence[str]) -> None:
    """The operations of some rows, the most bytes first."""
    for kind in kinds:
        by: dict[str, list[int]] = defaultdict(list)
        for operation in trace.operations:
            if operation.kind == kind:
                by[operation.name].append(operation.bytes)
        print(kind)
        for name, sizes in sorted(by.items(), key=lambda item: -sum(item[1])):
            print(f"    {name:50}{sum(sizes) / 1e9:9.2f} GB{len(sizes):8} calls")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="XL", help="LightningDiT's size: S, B, L, XL, 1p0B, 1p6B")
    parser.add_argument("--side", type=int, default=16, help="height and width of the latents: side^2 tokens")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--strategy", choices=list(DERIVATIVES), default="op_level")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--tflops", type=float, default=600.0, help="assumed of large products")
    parser.add_argument("--tb-per-s", type=float, default=2.7, help="assumed of memory")
    parser.add_argument("--operations", metavar="KIND", nargs="+", help="also the operations of these rows")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    result = {}
    for name, compiled in (("eager", False), ("compiled, estimated", True)):
        trace = step(options, formulas=compiled)
        result[name] = rows = table(fused(trace) if compiled else trace.operations, options)
        show(name, rows, options)
        if not compiled:
            listed(trace, options.operations or ())
    if options.json:
        said = {k: v for k, v in vars(options).items() if k not in ("json", "operations")}
        options.json.write_text(json.dumps({"options": said, "torch": torch.__version__, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""One step of a run on the meta device: every tensor has its size and no content, so that what lives can be counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from facm.core.modules import blocks_of
from facm.core.objective import Objective, as_objective
from facm.core.torch_private import backward, inside_dual_level, tree_map
from facm.core.types import Batch, Loss
from facm.derivative import OpLevel, Pair
from facm.distributed.block_transforms import prepare
from facm.distributed.engine import Engine
from facm.runs.config import Run, asked_teacher
from facm.training.memory_plan.counters import LiveBytes

AUTOCAST = frozenset(
    {nnf.linear, nnf.conv1d, nnf.conv2d, nnf.conv3d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
)


@dataclass(frozen=True)
class Rehearsal:
    """Peak bytes of one micro-batch's forward and backward passes, on top of the gradients.

    values: of the same step without a tangent. tangent: what the derivative adds to that. cast: weights that autocast
    keeps in bf16, in neither of the two.
    """

    values: int
    tangent: int
    cast: int


@dataclass(frozen=True)
class _NoTangent:
    """A derivative that costs nothing, to tell what the others cost."""

    def __call__(self, function: Any, primals: Pair, tangents: Pair) -> Pair:
        value = function(*primals)
        return value, torch.empty_like(value)


def rehearse(run: Run, batch: Batch, engine: Engine, teacher: nn.Module | None, bf16: bool, gpu: bool) -> Rehearsal:
    """``batch``: one micro-batch of one rank, on the meta device. gpu: attention and its tangent as on CUDA."""
    objective = as_objective(run.objective)
    if objective.derivative is None:
        peak, cast = _peak(run, objective, batch, engine, teacher, bf16)
        return Rehearsal(peak, 0, cast)
    derivative = objective.derivative
    if isinstance(derivative, OpLevel):
        derivative = OpLevel("kernel" if gpu else "plain")
    own: Any = run.objective
    peak, cast = _peak(run, dataclasses.replace(own, derivative=derivative), batch, engine, teacher, bf16)
    without, _ = _peak(run, dataclasses.replace(own, derivative=_NoTangent()), batch, engine, teacher, bf16)
    return Rehearsal(without, peak - without, cast)


def _peak(
    run: Run, objective: Objective, batch: Batch, engine: Engine, teacher: nn.Module | None, bf16: bool
) -> tuple[int, int]:
    """The most that the parts of the loss hold, and the weights that autocast keeps."""
    objective = as_objective(objective)
    network = built(run.network)
    asked: Any = asked_teacher(run, network, teacher)
    prepare(list(blocks_of(network, engine.blocks).values()), engine.checkpointing, compiled=False)
    gradients = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    peak = cast = 0
    made = 0 if engine.accumulate == 1 else gradients  # by the backward passes before; a later part only adds to them
    for p in network.parameters():
        p.grad = torch.empty_like(p) if made and p.requires_grad else None
    pending: list[Callable[[], Loss]] | None = None
    while pending is None or pending:
        with LiveBytes() as memory, AsOnDevice(bf16) as device:
            if pending is None:
                pending = list(objective.loss_terms(network, batch, torch.Generator(), asked))
            term = pending.pop(0)
            backward(term().total)
            del term
        peak = max(peak, made + memory.peak - device.cast_bytes - gradients)
        cast = max(cast, device.cast_bytes)
        made = gradients
    return peak, cast


def _moves(x: Tensor) -> bool:
    return inside_dual_level() and fwd.unpack_dual(x).tangent is not None


def built(config: Any) -> nn.Module:
    """The network on the meta device. Initialisation has no values to work on, and none are needed."""
    with torch.device("meta"):
        return config.build()


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel holds: its inputs, its output and one number a query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class AsOnDevice(TorchFunctionMode):
    """Draws on the meta device, which has no generator; attention by a fused kernel, or as its products; bf16 as
    autocast does it."""

    def __init__(self, bf16: bool, fused: bool = True) -> None:
        super().__init__()
        self.bf16, self.fused, self.weights = bf16, fused, {}  # type: ignore[var-annotated]

    @property
    def cast_bytes(self) -> int:
        return sum(w.nbytes for w in self.weights.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            kwargs = kwargs | {"generator": None, "device": "meta"}
        attends = func is nnf.scaled_dot_product_attention
        if self.bf16 and (func in AUTOCAST or attends):
            args, kwargs = tree_map(self._halved, (args, kwargs))
        if attends and self.fused:
            q, k, v = args[:3] if len(args) >= 3 else (kwargs[n] for n in ("query", "key", "value"))
            if not any(_moves(x) for x in (q, k, v)):  # with tangents there is only the plain formula
                return _FusedAttention.apply(q, k, v)
        return func(*args, **kwargs)

    def _halved(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if not isinstance(x, nn.Parameter):
            return x.to(torch.bfloat16)
        if id(x) not in self.weights:
            self.weights[id(x)] = x.to(torch.bfloat16)
        return self.weights[id(x)]

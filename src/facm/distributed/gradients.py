"""Gradients over the ranks: when they are reduced, their norm, and checks that they were reduced."""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from facm.distributed.collectives import gathered
from facm.distributed.process_group import World
from facm.distributed.wrap import is_sharded, local, whole


def reducing(wrapped: Any, last: bool) -> AbstractContextManager[Any]:
    """A context for the forward and backward pass of one part of a step: gradients are all-reduced in the last only.

    Sharded gradients are reduced within a replica in every part, since unsharded ones would need the memory that
    sharding saves, and between replicas in the last part.
    """
    if hasattr(wrapped, "no_sync"):  # DDP
        return contextlib.nullcontext() if last else wrapped.no_sync()
    if hasattr(wrapped, "set_requires_all_reduce"):  # FSDP2
        wrapped.set_requires_all_reduce(last)
    return contextlib.nullcontext()


def gradient_norm(network: nn.Module) -> Tensor:
    """The norm () of the gradient over all parameters and ranks."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return whole(torch.nn.utils.get_total_norm(gradients))


def clipping_divisor(norm: Tensor, bound: float) -> Tensor:
    """What a gradient of ``norm`` () is divided by, () and at least 1, so that its norm is at most ``bound``.

    The optimiser's kernel divides by it, as by the scale of torch.amp.GradScaler: a gradient is not read and written
    once more to be clipped.
    """
    return ((norm + 1e-6) / bound).clamp(min=1.0)


def check_parameters(network: nn.Module, world: World) -> None:
    """Raise RuntimeError unless all ranks hold the same parameters of an unsharded network."""
    sums = gathered(world, {name: _sums(value) for name, value in network.state_dict().items()})
    for rank, other in enumerate(sums):
        for name, value in sums[0].items():
            if repr(other.get(name)) != repr(value):  # repr: NaN equals NaN
                raise RuntimeError(f"parameter {name} differs between rank 0 and rank {rank} before the first step")


def check_gradients(network: nn.Module, world: World, find_unused: bool = False) -> None:
    """Raise RuntimeError, naming the first parameter, unless the backward pass reduced every gradient.

    Unsharded gradients must agree on all ranks, and every trained parameter must have one unless ``find_unused``. A
    missing one is looked for first, since DDP then leaves the others unreduced.
    Gradients of shards must be sharded and agree between the ranks that hold the same shard.
    """
    mine = {name: _gradient(p) for name, p in network.named_parameters() if p.requires_grad}
    all_ranks = gathered(world, mine)
    for name in mine:
        found = [ranks[name] for ranks in all_ranks]
        missing = [rank for rank, value in enumerate(found) if value is None]
        may_miss = len(missing) == world.ranks and (find_unused or is_sharded(network.get_parameter(name)))
        if missing and not may_miss:
            raise RuntimeError(
                f"parameter {name} has no gradient on rank {', '.join(map(str, missing))} after the first step's "
                "backward pass: freeze it (requires_grad = False), or set engine.find_unused (ddp)"
            )
    for name, gradient in mine.items():
        found = [ranks[name] for ranks in all_ranks]
        if gradient is None:
            continue
        for rank, other in enumerate(found):
            reference = next(value for value in found if value[0] == other[0])
            if not _close(reference[1], other[1]):
                raise RuntimeError(
                    f"the gradient of parameter {name} is not synchronised: rank {found.index(reference)} and rank "
                    f"{rank} differ after the first step's backward pass. The loss must be computed through the "
                    "network that the objective is given, not through network.module or a reference kept elsewhere; "
                    "where some parameters take no part in its last term, set engine.find_unused (ddp)"
                )


def _gradient(p: Tensor) -> tuple[Any, tuple[float, float]] | None:
    """(the index of the shard or None, the sums of this rank's part), or None without a gradient."""
    if p.grad is None:
        return None
    if is_sharded(p):
        if not is_sharded(p.grad):
            return ("not sharded", (float("nan"), float("nan")))
        mesh: Any = p.device_mesh  # type: ignore[attr-defined]
        return (mesh.get_local_rank("shard"), _sums(p.grad))
    return (None, _sums(p.grad))


def _sums(value: Tensor) -> tuple[float, float]:
    """The sum and the sum of magnitudes in float64, by which tensors are compared."""
    value = local(value.detach())
    if not value.is_floating_point():
        value = value.long()
    wide = value.double()
    return float(wide.sum()), float(wide.abs().sum())


def _close(a: tuple[float, float], b: tuple[float, float]) -> bool:
    scale = 1e-5 * max(a[1], b[1])
    return all((math.isnan(x) and math.isnan(y)) or abs(x - y) <= scale for x, y in zip(a, b, strict=True))

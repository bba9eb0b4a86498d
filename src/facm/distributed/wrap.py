"""A network over the ranks: whole on each (DDP) or in shards (FSDP2). The network keeps its names and its class's
attributes; what comes back is what a loss must be computed through, or its gradients stay with their rank."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from facm.core.modules import blocks_of
from facm.core.torch_private import map_tensors
from facm.distributed.block_transforms import prepare
from facm.distributed.engine import Engine
from facm.distributed.forward_ad_hooks import let_duals_pass
from facm.distributed.process_group import World


def spread(network: nn.Module, engine: Engine, world: World, device: torch.device, bf16: bool = False) -> nn.Module:
    """``network``, ready for ``engine``: blocks prepared in place, then whole on every rank or sharded in place.

    Returns what losses go through: the network itself, or around it a DDP module with ``.module``.
    bf16: the run's precision, for what FSDP gathers on GPUs.
    """
    prepare(list(blocks_of(network, engine.blocks).values()), engine.checkpointing, engine.compile == "blocks")
    match engine.kind(world.ranks):
        case "alone":
            return network.to(device)
        case "ddp":
            return replicated(network.to(device), engine, device)
        case _:
            return shard(network, engine, world, device, bf16)


def replicated(network: nn.Module, engine: Engine, device: torch.device) -> nn.Module:
    """DDP that passes on the network's own attributes.

    Networks are pure: buffers never change, and broadcasting them would fail inside func.jvp.
    """
    from torch.nn.parallel import DistributedDataParallel

    class Replicated(DistributedDataParallel):
        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("module"), name)

    named = inspect.signature(DistributedDataParallel).parameters
    syncing = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"  # from 2.13 on
    options: dict[str, Any] = {syncing: False, "find_unused_parameters": engine.find_unused}
    options["gradient_as_bucket_view"] = True  # what is sent is the gradient itself, not a copy that stays
    return Replicated(network, device_ids=[device.index] if device.type == "cuda" else None, **options)


def shard(network: nn.Module, engine: Engine, world: World, device: torch.device, bf16: bool = False) -> nn.Module:
    """FSDP2 in place: each block is a unit, what is left is the root's.

    On GPUs in bf16 the blocks are gathered in bf16 and their gradients reduced in float32; the root, which embeds the
    times, stays in float32, and inputs are never cast: autocast does that where it is right.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    if world.ranks % engine.replicas:
        engine.check(world.ranks * engine.accumulate, world.ranks)
    if engine.replicas > 1:
        sizes, names = (engine.replicas, world.ranks // engine.replicas), ("replicate", "shard")
        mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    else:
        mesh = init_device_mesh(device.type, (world.ranks,), mesh_dim_names=("shard",))
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if engine.cpu_offload else OffloadPolicy()
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    units = list(_units(network, engine.blocks))
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    for unit in [*units, network]:
        policy = half if bf16 and device.type == "cuda" and unit is not network else plain
        fully_shard(unit, mesh=mesh, mp_policy=policy, offload_policy=offload)
        let_duals_pass(unit)
    map_tensors(network, partial(_materialised, device=torch.device("cpu") if engine.cpu_offload else device))
    return network


def _units(network: nn.Module, names: tuple[str, ...]) -> Iterator[nn.Module]:
    """The blocks by name, or by default where a teacher is another network than the names were meant for."""
    modules = dict(network.named_modules())
    return iter(blocks_of(network, names if all(name in modules for name in names) else ()).values())


def _materialised(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)


@contextlib.contextmanager
def without_parameters() -> Iterator[None]:
    """Networks built inside have parameters on the meta device, which take no memory, and buffers as always."""

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor: this rank holds a part of it."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; the tensor itself where it is whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Where it is sharded, all ranks call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def fill(target: Tensor, source: Tensor) -> None:
    """Copy ``source``, whole on every rank, into ``target`` or this rank's part of it."""
    if is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
        source = distribute_tensor(source.to(target.device), mesh, placements, src_data_rank=None)
        local(target).copy_(local(source))
    else:
        target.copy_(source)

"""A network over the ranks, replicated (DDP) or sharded (FSDP2), with its names and attributes unchanged.

A loss must be computed through the module that is returned here, otherwise its gradients are not reduced.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextvars import ContextVar
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
    """Prepare the blocks of ``network`` in place and replicate or shard it as ``engine`` describes.

    Returns the module that losses are computed through: the network itself, or a DDP module around it.
    bf16: Whether the run's precision is bf16, in which FSDP then gathers parameters on GPUs.
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
    """DDP that exposes the network's attributes as its own.

    Buffers are not broadcast: they never change, since networks are pure, and broadcasting would fail inside func.jvp.
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
    options["gradient_as_bucket_view"] = True  # send the gradient itself, not a copy of it
    return Replicated(network, device_ids=[device.index] if device.type == "cuda" else None, **options)


def shard(network: nn.Module, engine: Engine, world: World, device: torch.device, bf16: bool = False) -> nn.Module:
    """Shard ``network`` in place by FSDP2: each block is a unit, and the root holds all other parameters.

    On GPUs in bf16 the blocks are gathered in bf16 and their gradients are reduced in float32. The root, which embeds
    the times, stays in float32, and inputs are not cast, since autocast does so where it is right.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    check_shardable(network, engine.blocks)
    for p in network.parameters():
        p.data = p.data.contiguous()  # as FSDP2 wants them
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


def check_shardable(network: nn.Module, blocks: tuple[str, ...] = ()) -> None:
    """Raise ValueError, naming the parameter, where FSDP2 cannot shard ``network`` into these units.

    A unit is gathered and reduced as one: its trained parameters have one dtype, and each belongs to one unit.
    """
    units = {id(unit) for unit in _units(network, blocks)}
    known = {id(m): name for name, m in network.named_modules()}  # the first name of what is listed twice
    inside = {name: known[id(m)] for name, m in network.named_modules(remove_duplicate=False) if id(m) in units}
    owner: dict[int, str] = {}  # of a parameter: its unit
    first: dict[int, str] = {}  # of a parameter: its name
    dtypes: dict[str, tuple[str, torch.dtype]] = {}  # of a unit: a trained parameter's
    wrong = "engine.parallel = 'fsdp' cannot shard"
    for name, p in network.named_parameters(remove_duplicate=False):
        unit = next((u for place, u in inside.items() if name.startswith(f"{place}.")), "what is in no block")
        before = first.setdefault(id(p), name)
        if owner.setdefault(id(p), unit) != unit:
            raise ValueError(
                f"{wrong} {before} and {name}, one parameter in two units ({owner[id(p)]} and {unit}); expected "
                "engine.parallel = 'ddp', or engine.blocks with one unit around both"
            )
        if p.ndim == 0:
            raise ValueError(f"{wrong} {name} of shape (); expected shape (1,), or engine.parallel = 'ddp'")
        if not p.requires_grad:
            continue
        if p.numel() == 0:
            raise ValueError(f"{wrong} {name} of shape {tuple(p.shape)}, which is empty; expected it frozen, or 'ddp'")
        other, dtype = dtypes.setdefault(unit, (name, p.dtype))
        if p.dtype != dtype:
            raise ValueError(
                f"{wrong} {name} ({p.dtype}) in one unit with {other} ({dtype}); expected one dtype, a block of its "
                "own in engine.blocks, or engine.parallel = 'ddp'"
            )


def _units(network: nn.Module, names: tuple[str, ...]) -> Iterator[nn.Module]:
    """The blocks by name, or the default blocks for a network without these names, such as another kind of teacher."""
    modules = dict(network.named_modules())
    return iter(blocks_of(network, names if all(name in modules for name in names) else ()).values())


def _materialised(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)


_LEFT_OUT: ContextVar[bool] = ContextVar("parameters_are_left_out", default=False)


def parameters_are_left_out() -> bool:
    """Whether networks are being built without memory for their parameters: reading weights would be in vain."""
    return _LEFT_OUT.get()


@contextlib.contextmanager
def without_parameters() -> Iterator[None]:
    """Networks that are built inside have ordinary buffers and parameters on the meta device, without memory."""

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)
        hook.remove()


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor, of which this rank holds a part."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in the same memory; an unsharded tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """The full tensor. All ranks must call this together for a sharded one."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def fill(target: Tensor, source: Tensor) -> None:
    """Copy ``source``, which every rank holds in full, into ``target`` or this rank's part of it."""
    if is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
        source = distribute_tensor(source.to(target.device), mesh, placements, src_data_rank=None)
        local(target).copy_(local(source))
    else:
        target.copy_(source)

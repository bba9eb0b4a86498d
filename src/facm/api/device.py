"""Where a command computes, and in which precision."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from facm.distributed.process_group import World
    from facm.pretrained.trained import Trained

Precision = Literal["auto", "fp32", "bf16"]


def placed(world: World, device: str) -> World:
    """``world``, which computes on the device called auto, cpu, cuda, or cuda:N for a single process.

    Raises ValueError for another name and for a GPU that is not there.
    """
    import torch

    if device == "auto":
        return world
    if device == "cpu":
        return dataclasses.replace(world, chosen=torch.device("cpu"))
    if re.fullmatch(r"cuda(:\d+)?", device) is None:
        raise ValueError(f"device = {device}, expected auto, cpu, cuda, or a GPU's number as in cuda:1")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ValueError(f"device = {device}, and PyTorch sees no GPU: expected auto or cpu")
    if device == "cuda":
        return world
    if world.ranks > 1:
        raise ValueError(f"device = {device} with {world.ranks} ranks, which have a GPU each: expected cuda or auto")
    chosen = torch.device(device)
    if chosen.index >= count:
        raise ValueError(f"device = {device}, and PyTorch sees {count} GPUs: expected cuda:0 to cuda:{count - 1}")
    torch.cuda.set_device(chosen)  # kernels of other libraries run on the current one
    return dataclasses.replace(world, chosen=chosen)


def in_precision(trained: Trained, precision: Precision, device: torch.device) -> Trained:
    """``trained``, whose network computes in this precision; its rows say which."""
    if precision != "bf16":
        return trained
    cast_forward(trained.network, device)
    return dataclasses.replace(trained, precision="bf16")


def with_compiled_blocks(trained: Trained, compile: bool) -> Trained:
    """``trained``, whose network's blocks are compiled, in place. Raises ValueError for a network without blocks."""
    from facm.core.modules import blocks_of
    from facm.distributed.block_transforms import prepare

    if compile:
        blocks = list(blocks_of(trained.network).values())
        if not blocks:
            raise ValueError(f"--compile with {type(trained.network).__name__}, which has no ModuleList of blocks")
        prepare(blocks, checkpointing=False, compiled=True)
    return trained


def cast_forward(network: nn.Module, device: torch.device) -> None:
    """Let ``network`` compute under bf16 autocast, in place. Its output stays float32: nothing outside is summed in
    half precision."""
    import torch

    from facm.core.tensors import at_least_float32

    forward = torch.autocast(device.type, torch.bfloat16)(network.forward)

    def cast(*arguments: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return at_least_float32(forward(*arguments, **named))

    network.forward = cast

"""Low-rank adapters (Hu et al., 2021) through peft, switched on and off inside one network."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.component import Count, component
from facm.core.rng import derive
from facm.core.torch_private import switch_adapters
from facm.distributed.wrap import fill

ADAPTER = "default"
"""peft's name of the adapter, which diffusers' own loaders use too."""


@dataclass(frozen=True)
@component
class LoRA:
    """Which layers are adapted, and by how much: W + (alpha / rank) B A."""

    rank: Count = 64
    """Rank of each adapter, at least 1."""
    alpha: Count | None = None
    """Scale of the adapters times their rank; None: the rank, so that the scale is 1."""
    targets: tuple[str, ...] = ()
    """Ends of the names of the linear layers that are adapted, such as "to_q"; empty: the family's."""


def add_lora(transformer: Any, lora: LoRA, targets: tuple[str, ...], seed: int = 0) -> None:
    """Add adapters in float32 to ``transformer`` in place and freeze all else; B = 0, so that nothing changes yet.

    targets: what is adapted where ``lora`` names none. seed: of A. Raises ValueError where no layer has such a name, or
    peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError("lora needs peft, which is not installed: pip install 'facm[hf]'") from error
    wanted = lora.targets or targets
    linear = [name for name, m in transformer.named_modules() if isinstance(m, nn.Linear)]
    unknown = [end for end in wanted if not any(name == end or name.endswith(f".{end}") for name in linear)]
    if lora.targets and unknown:
        ends = sorted({".".join(name.split(".")[-2:]) for name in linear})
        raise ValueError(f"lora.targets names {', '.join(unknown)}, which no linear layer has; there are {ends}")
    # Whole names: an end may also be that of a container, such as to_out, which is a list elsewhere in FLUX.2.
    adapted = [name for name in linear if any(name == end or name.endswith(f".{end}") for end in wanted)]
    largest = max(min(transformer.get_submodule(name).weight.shape) for name in adapted)
    if lora.rank > largest:
        raise ValueError(f"LoRA: rank = {lora.rank}, expected at most {largest}, the full rank of the largest layer")
    alpha = lora.rank if lora.alpha is None else lora.alpha
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft draws first weights, which are not kept
        transformer.add_adapter(
            LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=adapted, init_lora_weights=True), ADAPTER
        )
    for _, parameter in lora_parameters(transformer):
        parameter.data = parameter.data.float()
    begin_lora(transformer, seed)


@torch.no_grad()
def begin_lora(transformer: nn.Module, seed: int) -> None:
    """The adapters' first weights: A as peft draws it, a function of (seed, name of its layer) whatever it is drawn on
    and however it is sharded; B = 0. Parameters without memory are left so."""
    for name, layer in lora_layers(transformer).items():
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        if down.is_meta:
            continue
        rng = torch.Generator().manual_seed(derive(seed, *name.encode()))
        drawn = torch.empty(down.shape)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=rng)
        fill(down, drawn)
        up.zero_()


def lora_layers(transformer: nn.Module) -> dict[str, Any]:
    """peft's layers by name."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in transformer.named_modules() if isinstance(m, LoraLayer)}


def lora_parameters(transformer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapters' parameters by name."""
    for name, parameter in transformer.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            yield name, parameter


def lora_differences(transformer: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> what its adapter adds to its weight as up (out, r) and down (r, in), the scale in up."""
    return {
        name: (
            layer.lora_B[ADAPTER].weight.detach() * layer.scaling[ADAPTER],
            layer.lora_A[ADAPTER].weight.detach(),
        )
        for name, layer in lora_layers(transformer).items()
    }


@contextlib.contextmanager
def lora_off(transformer: nn.Module) -> Iterator[None]:
    """The base model, inside the context."""
    layers = lora_layers(transformer).values()
    try:
        switch_adapters(layers, off=True)
        yield
    finally:
        switch_adapters(layers, off=False)

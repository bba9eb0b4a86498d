"""What a student adds to the weights of its model, as products of two matrices, and its weights with that added."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from facm.foundation.lora import lora_differences
from facm.foundation.network import DiffusersNetwork

BASE_LAYER = "base_layer."
"""What peft puts into the names of weights that it adapts."""


class LowRank(NamedTuple):
    """A difference of weights (out, in) = up @ down.

    up: (out, r) float32.
    down: (r, in) float32.
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return len(self.down)

    def product(self) -> Tensor:
        """(out, in) float32."""
        return self.up @ self.down


@torch.no_grad()
def added(network: DiffusersNetwork) -> dict[str, LowRank]:
    """Layer of the transformer -> what adapters and smoothing add to its weight, without those that add nothing."""
    differences: dict[str, LowRank] = {}
    if network.has_lora:
        for name, (up, down) in lora_differences(network.transformer).items():
            differences[name] = LowRank(up.float(), down.float())
    smoothing = network.smoothing
    if smoothing is not None:
        up, down = (value.float() for value in smoothing.difference())
        name = layer_of_smoothing(network)
        if name in differences:  # its input is masked for the adapter, too
            adapter = differences[name]
            up = torch.cat([adapter.up, up], 1)
            down = torch.cat([adapter.down * smoothing.slow.to(adapter.down), down])
        differences[name] = LowRank(up, down)
    return {name: d for name, d in differences.items() if d.rank and bool(d.up.any()) and bool(d.down.any())}


def layer_of_smoothing(network: DiffusersNetwork) -> str:
    """The name of the layer that smoothing masks."""
    assert network.smoothing is not None
    return network.family.time_embedding(bare(network.transformer)).layer


def bare(transformer: nn.Module) -> nn.Module:
    """The transformer as diffusers makes it, without adapters and without memory."""
    with torch.device("meta"):
        module: nn.Module = type(transformer).from_config(transformer.config)  # type: ignore[attr-defined]
    return module


@torch.no_grad()
def merged(network: DiffusersNetwork, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The transformer's state dict under diffusers' names, with adapters and smoothing added in float32.

    dtype: of what is returned; None: as the weights are.
    """
    differences = added(network)
    merged: dict[str, Tensor] = {}
    for key, value in network.transformer.state_dict().items():
        if ".lora_A." in key or ".lora_B." in key:
            continue
        name = key.replace(BASE_LAYER, "")
        difference = differences.get(name.removesuffix(".weight"))
        if difference is not None and name.endswith(".weight"):
            total = value.float() + difference.product().to(value.device)
            merged[name] = total.to(dtype or value.dtype)
        else:
            merged[name] = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    return merged


@torch.no_grad()
def exported(network: DiffusersNetwork, dtype: torch.dtype | None = None) -> nn.Module:
    """A transformer of diffusers with the merged weights. dtype: as for :func:`merged`."""
    module = bare(network.transformer)
    module.load_state_dict({name: value.cpu() for name, value in merged(network, dtype).items()}, assign=True)
    return module.eval()

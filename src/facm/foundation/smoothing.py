"""Taking the fast sinusoids of time out of a transformer.

diffusers' transformers embed 1000 t: their fastest sinusoids turn a thousand radians while t goes from noise to data.
The flow hardly uses them, but the tangent dF/dt that a continuous consistency objective learns from is dominated by
them. Without their columns of the first linear layer the function hardly changes, and its derivative becomes small.
``facm distill --probe`` measures this for a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from facm.foundation.families.base import TimeEmbedding


class Smoothing:
    """Masks the fast columns of a time embedding, and can be switched off, as for a teacher that shares the module.

    layer: the first linear layer of the time embedding.
    slow: (columns,) bool, the columns that are kept.
    """

    def __init__(self, transformer: nn.Module, embedding: TimeEmbedding, highest: float) -> None:
        self.layer = transformer.get_submodule(embedding.layer)
        self.slow: Tensor = embedding.frequencies <= highest
        self.on = True
        if not bool(self.slow.any()):
            raise ValueError(
                f"smooth = {highest:g}: no frequency of {embedding.layer} is as low, expected at least "
                f"{float(embedding.frequencies.min()):.3g} radians per unit of t"
            )
        self._hook = self.layer.register_forward_pre_hook(self._mask)
        for parameter in self.layer.parameters():
            parameter.requires_grad_(False)  # the edit stays what it is

    def remove(self) -> None:
        """Take the mask off the module for good."""
        self._hook.remove()

    def _mask(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.on:
            return None
        x, *rest = inputs
        if self.slow.device != x.device:
            self.slow = self.slow.to(x.device)
        return (x * self.slow.to(x.dtype), *rest)

    @torch.no_grad()
    def difference(self) -> tuple[Tensor, Tensor]:
        """What the mask adds to the layer's weight (out, columns), as a product up (out, r) @ down (r, columns)."""
        weight = self._weight()
        fast = (~self.slow).nonzero().squeeze(1).to(weight.device)
        down = torch.zeros(len(fast), weight.shape[1], device=weight.device, dtype=weight.dtype)
        down[torch.arange(len(fast)), fast] = 1.0
        return -weight[:, fast], down

    @torch.no_grad()
    def bake(self) -> None:
        """Put the mask into the weight, for an export."""
        self._weight().mul_(self.slow.to(self._weight()))

    def _weight(self) -> Tensor:
        base = getattr(self.layer, "base_layer", self.layer)  # inside peft's layer
        weight = base.weight
        assert isinstance(weight, Tensor)
        return weight

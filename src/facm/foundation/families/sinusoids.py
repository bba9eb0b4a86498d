"""Frequencies of diffusers' time embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PERIOD = 10_000.0


def cosines_then_sines(columns: int, factor: float) -> Tensor:
    """(columns,) radians per unit of t of ``Timesteps(columns, downscale_freq_shift=0)`` of ``factor`` t, whose first
    half are cosines and whose second half are sines of the same frequencies, or the other way round."""
    half = columns // 2
    frequencies = torch.exp(-math.log(PERIOD) * torch.arange(half, dtype=torch.float32) / half) * factor
    return torch.cat([frequencies, frequencies])


def columns_of(transformer: nn.Module, layer: str) -> int:
    """The number of inputs of a linear layer by its name."""
    return int(transformer.get_submodule(layer).in_features)  # type: ignore[arg-type]

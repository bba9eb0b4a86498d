"""What tests of all packages share: generators with a seed, double-precision normals, and tensors of several types."""

from __future__ import annotations

import torch

TENSORS = {"a/weight": torch.arange(12.0).reshape(3, 4), "a/count": torch.tensor(3), "b": torch.zeros(2).bfloat16()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)

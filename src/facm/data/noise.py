"""Random data of any shape, for memory plans, benchmarks and first tries of a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from facm.core.types import Batch, Dataset


@dataclass(frozen=True)
class Noise:
    """Samples of standard normal numbers, each a function of its index.

    Raises ValueError for sizes below 1, or for both num_classes and cond_shape."""

    shape: tuple[int, ...]
    """Shape of one sample, such as (C, H, W)."""
    num_classes: int | None = None
    """Number of classes, which the samples' labels run through in turn; None for samples without labels."""
    cond_shape: tuple[int, ...] = ()
    """Shape of a random condition of each sample, such as the embedding of a text; empty for none."""
    n: int = 1000
    """Number of samples, at least 1."""

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1 or self.n < 1:
            raise ValueError(f"Noise: shape = {self.shape}, n = {self.n}, expected positive sizes")
        if self.num_classes is not None and self.cond_shape:
            given = f"num_classes = {self.num_classes} and cond_shape = {self.cond_shape}"
            raise ValueError(f"Noise: {given}, expected one of them")

    def open(self) -> Dataset:
        return _Noise(self)


class _Noise:
    flip = False

    def __init__(self, config: Noise) -> None:
        self.config, self.shape, self.num_classes = config, config.shape, config.num_classes

    def __len__(self) -> int:
        return self.config.n

    def read(self, indices: np.ndarray) -> Batch:
        def normal(i: int, shape: tuple[int, ...], kind: int) -> np.ndarray:
            return np.random.default_rng((int(i), kind)).standard_normal(shape, dtype=np.float32)

        x_1 = torch.from_numpy(np.stack([normal(i, self.shape, 0) for i in indices]))
        if self.num_classes is not None:
            return Batch(x_1, torch.from_numpy(np.asarray(indices, np.int64) % self.num_classes))
        if self.config.cond_shape:
            return Batch(x_1, torch.from_numpy(np.stack([normal(i, self.config.cond_shape, 1) for i in indices])))
        return Batch(x_1)

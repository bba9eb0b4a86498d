"""Random data of any shape, for memory plans, benchmarks and first tries of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from facm.core.component import Count, Range, component, refused
from facm.core.types import Batch, Data, Dataset

Shape = tuple[Count, ...]
MOST_NUMBERS = 2**31
"""Numbers in one sample."""


@dataclass(frozen=True)
@component
class Noise(Data):
    """Samples of standard normal numbers, each a function of its index.

    Raises ComponentError for both num_classes and cond_shape."""

    shape: Annotated[Shape, Range("[1, 16]")]
    """Shape of one sample, such as (C, H, W)."""
    num_classes: Annotated[int, Range("[1, 16777216]")] | None = None
    """Number of classes, which the samples' labels run through in turn; None for samples without labels."""
    cond_shape: Annotated[Shape, Range("[0, 16]")] = ()
    """Shape of a random condition of each sample, such as the embedding of a text; empty for none."""
    n: Count = 1000
    """Number of samples, at least 1."""

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.cond_shape:
            raise refused(self, "cond_shape", f"none with num_classes = {self.num_classes}")
        for name in ("shape", "cond_shape"):
            if math.prod(getattr(self, name)) > MOST_NUMBERS:
                raise refused(self, name, f"at most {MOST_NUMBERS} numbers")

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

"""A data set in memory: small data sets open into it, and a user's own arrays fit into it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from facm.core.types import Batch
from facm.data.checked import check_at_least


@dataclass(frozen=True, eq=False)
class InMemory:
    """Samples and labels as arrays.

    Raises ValueError for other types, shapes or lengths. Ranges of labels and finiteness are checked when samples are
    read."""

    images: np.ndarray
    """Samples: uint8 (N, C, H, W), read as x / 127.5 - 1, or float32 (N, ...), read unchanged (images in [-1, 1])."""
    labels: np.ndarray | None = None
    """Class labels, integers (N,) in [0, num_classes); None for samples without classes."""
    num_classes: int | None = None
    """Number of classes; None without labels."""
    flip: bool = False
    """Mirror each sample left to right with probability 1/2; mirrored samples must be valid."""
    name: str = "InMemory"
    """Name of the data set in error messages."""

    def __post_init__(self) -> None:
        if self.images.dtype not in (np.uint8, np.float32) or self.images.ndim < 2:
            raise ValueError(
                f"{self.name}: images are {self.images.dtype} {self.images.shape}, expected uint8 or float32 (N, ...)"
            )
        if (self.labels is None) != (self.num_classes is None):
            raise ValueError(
                f"{self.name}: labels {'absent' if self.labels is None else 'given'} and "
                f"num_classes = {self.num_classes}, expected both or neither"
            )
        if self.num_classes is not None:
            check_at_least(self.name, "num_classes", self.num_classes, 1)
        if self.labels is not None and (
            self.labels.shape != self.images.shape[:1] or not np.issubdtype(self.labels.dtype, np.integer)
        ):
            raise ValueError(
                f"{self.name}: labels are {self.labels.dtype} {self.labels.shape}, "
                f"expected integers ({len(self.images)},): one per image"
            )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the samples: a hash of images in bytes, labels and classes. Samples of floating
        point count by their number and shape alone: computed anew, they may differ in the last bit."""
        digest = hashlib.sha256(f"{self.images.dtype} {self.images.shape} {self.num_classes}".encode())
        if self.images.dtype == np.uint8:
            digest.update(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> Batch:
        """Samples ``indices`` (B,): x_1 (B, *shape) float32, cond (B,) int64 or None.

        Raises IndexError for indices outside [0, N).
        """
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(
                f"{self.name}: indices run over [{indices.min()}, {indices.max()}], of {len(self)} samples"
            )
        x = self.images[indices]
        if x.dtype == np.uint8:
            x = from_bytes(x)
        return Batch(
            torch.from_numpy(x),
            None if self.labels is None else torch.from_numpy(self.labels[indices].astype(np.int64)),
        )


def from_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 from 0 to 255 -> float32 in [-1, 1], exact at both ends."""
    x = pixels.astype(np.float32)
    x /= 127.5
    x -= 1
    return x

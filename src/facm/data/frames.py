"""The frames of clips: as images, and of a data set of clips as a data set of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facm.core.cond import taken
from facm.core.types import Batch, Dataset


def is_clip(shape: tuple[int, ...]) -> bool:
    """Whether samples of ``shape`` are clips of pixels: (1 or 3, frames, H, W)."""
    return len(shape) == 4 and shape[0] in (1, 3)


def spaced(frames: int, most: int | None) -> list[int]:
    """At most ``most`` of ``frames`` frames, evenly spaced, the first and the last among them; None: all."""
    if most is None or frames <= most:
        return list(range(frames))
    return np.linspace(0, frames - 1, most).round().astype(int).tolist() if most > 1 else [0]


def as_images(x: Tensor, most: int | None = None) -> Tensor:
    """Clips (B, C, frames, H, W) -> their frames (B * n, C, H, W), those of a clip after each other.

    most: at most so many of each clip, see :func:`spaced`.
    """
    chosen = x[:, :, spaced(x.shape[2], most)]
    return chosen.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of a data set of clips (C, frames, H, W) as images (C, H, W) with the labels of their clips.

    clips: the data set. most: at most so many frames of each clip, see :func:`spaced`; None: all.
    """

    clips: Dataset
    most: int | None = None

    @property
    def _chosen(self) -> list[int]:
        return spaced(self.clips.shape[1], self.most)

    @property
    def per_clip(self) -> int:
        """Number of frames of each clip."""
        return len(self._chosen)

    @property
    def shape(self) -> tuple[int, ...]:
        channels, _, height, width = self.clips.shape
        return channels, height, width

    @property
    def num_classes(self) -> int | None:
        return self.clips.num_classes

    @property
    def flip(self) -> bool:
        return self.clips.flip

    def __len__(self) -> int:
        return len(self.clips) * self.per_clip

    def read(self, indices: np.ndarray) -> Batch:
        """Frames ``indices`` (B,): x_1 (B, C, H, W); each clip is read once."""
        chosen = self._chosen
        which, frames = np.asarray(indices) // len(chosen), np.asarray(chosen)[np.asarray(indices) % len(chosen)]
        clips, found = np.unique(which, return_inverse=True)
        batch, places = self.clips.read(clips), torch.from_numpy(found)
        return Batch(batch.x_1[places, :, torch.from_numpy(frames)], taken(batch.cond, places))

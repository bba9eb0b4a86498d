"""Clips as one mp4, where ffmpeg is at hand, and as 8-bit arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from facm.core.ffmpeg import program, write_mp4
from facm.core.files import atomically
from facm.data.frames import as_images, is_clip
from facm.sampling.images import GAP, shrunk, to_uint8

MOST_WIDTH = 2048
"""Pixels of several clips that play beside each other."""
FPS = 8.0
"""Frames a second of clips that do not say it."""
LEAST_SIDE = 128
"""Pixels of a clip's height in an mp4: smaller ones are enlarged, since players blur them."""


def clip_to_uint8(x: Tensor) -> np.ndarray:
    """Clips (B, C, frames, H, W) in [-1, 1] -> (B, frames, H, W, 3) uint8; images as
    :func:`facm.sampling.images.to_uint8` makes them."""
    if not is_clip(tuple(x.shape[1:])):
        return to_uint8(x)
    pixels = to_uint8(as_images(x))
    return pixels.reshape(len(x), x.shape[2], *pixels.shape[1:])


def side_by_side(rows: Sequence[Tensor]) -> np.ndarray:
    """Clips that play at once, (frames, H', W', 3) uint8: the rows (B, C, frames, H, W) one above the other, or the
    clips of a single row in a square. A single clip keeps its size; many large ones are shrunk."""
    n = len(rows[0])
    columns = n if len(rows) > 1 else math.ceil(math.sqrt(n))
    factor = 1 if len(rows) * n == 1 else -(-columns * rows[0].shape[4] // MOST_WIDTH)
    clips = [clip for row in rows for clip in clip_to_uint8(shrunk(row, factor))]
    frames, height, width, _ = clips[0].shape
    scale = max(1, -(-LEAST_SIDE // height)) if height < LEAST_SIDE else 1
    height, width, gap = height * scale, width * scale, GAP * scale
    size = (-(-len(clips) // columns) * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = np.full((frames, *size, 3), 255, np.uint8)
    for i, clip in enumerate(clips):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = clip.repeat(scale, 1).repeat(scale, 2)
    return sheet


def save_mp4(path: Path, rows: Sequence[Tensor], fps: float = FPS, new: bool = False) -> bool:
    """Write the clips of :func:`side_by_side`; False, and nothing, where there is no ffmpeg.

    new: raise TakenError where there is something at ``path``. Raises ValueError where ffmpeg fails.
    """
    if program() is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path, new) as partial:
        write_mp4(partial, side_by_side(rows), fps)
    return True

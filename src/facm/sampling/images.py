"""Samples as pictures: 8-bit arrays and grids in PNG, in which a clip is its frames beside each other."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facm.core.files import atomically
from facm.data.frames import is_clip, spaced

MOST_SHOWN = 8
"""Frames of a clip that are drawn beside each other."""
GAP = 1
"""Pixels between pictures."""
MOST_WIDTH = 4096
"""Pixels of a clip's frames beside each other; larger ones are shrunk."""


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of ``shape`` can be drawn as they are: (1 or 3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def as_strips(x: Tensor, most: int = MOST_SHOWN) -> Tensor:
    """Clips (B, C, frames, H, W) -> pictures (B, C, H, W') of at most ``most`` frames each, evenly spaced, beside each
    other on white; anything else as it is. Frames are shrunk to a half, a third, ... where they have no room."""
    if not is_clip(tuple(x.shape[1:])):
        return x
    shown = spaced(x.shape[2], most)
    frames = [shrunk(x[:, :, k], -(-len(shown) * x.shape[4] // MOST_WIDTH)) for k in shown]
    gap = x.new_ones(*x.shape[:2], frames[0].shape[2], GAP)
    parts = [part for frame in frames for part in (frame, gap)]
    return torch.cat(parts[:-1], dim=3)


def shrunk(x: Tensor, factor: int) -> Tensor:
    """x (..., H, W) at 1/factor of its height and width, by averages; what is left over at the end is cut."""
    if factor <= 1:
        return x
    pooled = F.avg_pool2d(x.detach().float().flatten(0, -4), factor)
    return pooled.reshape(*x.shape[:-2], *pooled.shape[-2:])


def to_uint8(x: Tensor) -> np.ndarray:
    """x (B, C, H, W) in [-1, 1] -> (B, H, W, 3) uint8, rounded; one channel is shown grey.

    Raises ValueError for anything that is not an image of 1 or 3 channels.
    """
    if not is_image(tuple(x.shape[1:])):
        raise ValueError(
            f"samples of shape {tuple(x.shape)} cannot be drawn, expected (B, 1 or 3, H, W), or with frames before H"
        )
    levels = ((x.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def grid_png(x: Tensor, columns: int = 10, gap: int = GAP, scale: int | None = None) -> bytes:
    """A PNG of x (B, C, H, W), row by row; of clips (B, C, frames, H, W) with one in a row. ``scale`` enlarges each
    pixel (None: to about 32 pixels an image)."""
    from PIL import Image

    if x.ndim == 5:
        columns, gap = 1, max(gap, 2 * GAP)  # clips are further from each other than their frames
    pixels = to_uint8(as_strips(x))
    n, height, width, _ = pixels.shape
    columns, rows = min(columns, n), math.ceil(n / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    scale = max(1, round(32 / height)) if scale is None else scale
    buffer = io.BytesIO()
    Image.fromarray(sheet.repeat(scale, 0).repeat(scale, 1)).save(buffer, "PNG")
    return buffer.getvalue()


def save_grid(path: Path, x: Tensor, columns: int = 10, new: bool = False) -> None:
    """Write the picture of :func:`grid_png`. new: raise TakenError where there is something at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path, new) as partial:
        partial.write_bytes(grid_png(x, columns))

"""The centre crop: of a square as behind published results on ImageNet, or of any other size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def centre_crop(image: Image, height: int, width: int | None = None) -> np.ndarray:
    """The centre of an RGB image at ``height`` x ``width`` pixels: (height, width, 3) uint8. width: None for a square.

    The image is halved with a box filter while it is at least twice as large on both sides, then resized with a bicubic
    filter until it covers the crop, then cut. Source: guided-diffusion (ADM), whose crop the reference uses.
    """
    from PIL.Image import Resampling

    width = height if width is None else width
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))

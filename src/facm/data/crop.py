"""The centre crop behind published results on ImageNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def centre_crop(image: Image, size: int) -> np.ndarray:
    """The central square of an RGB image at ``size`` x ``size`` pixels: (size, size, 3) uint8.

    The image is halved with a box filter while its shorter side is at least twice ``size``, then resized with a bicubic
    filter until the shorter side is ``size``, then cut. Source: guided-diffusion (ADM), whose crop the reference uses.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))

"""Checks of the images, latents and noise that an autoencoder is called with."""

from __future__ import annotations

import torch
from torch import Tensor


def check_images(x: Tensor, factor: int) -> None:
    """Raise ValueError unless x is (B, 3, H, W) float32 with H and W multiples of ``factor``."""
    if x.ndim != 4 or x.shape[1] != 3 or x.dtype != torch.float32:
        raise ValueError(f"images {_said(x)}, expected float32 (B, 3, H, W) in [-1, 1]")
    height, width = x.shape[2:]
    if min(height, width) < factor or height % factor or width % factor:
        raise ValueError(f"images of {height} x {width}, expected multiples of {factor} for this autoencoder")


def check_latents(z: Tensor, channels: int) -> None:
    """Raise ValueError unless z is (B, channels, h, w) float32."""
    if z.ndim != 4 or z.shape[1] != channels or z.dtype != torch.float32:
        raise ValueError(f"latents {_said(z)}, expected float32 (B, {channels}, h, w) for this autoencoder")


def check_noise(noise: Tensor, mean: Tensor) -> None:
    """Raise ValueError unless the noise has the latents' shape, since broadcasting would share it between samples."""
    if noise.shape != mean.shape:
        raise ValueError(
            f"noise {_said(noise)}, expected {tuple(mean.shape)}, one normal for each entry of the latents"
        )


def _said(x: Tensor) -> str:
    return f"of shape {tuple(x.shape)} and {x.dtype}"

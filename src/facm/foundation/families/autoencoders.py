"""Between pictures and latents, for the autoencoders that several families share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scaled_latents(vae: Any, images: Tensor) -> Tensor:
    """(B, C, h, w) of images (B, 3, H, W): the posterior's mode, shifted and scaled by the VAE's two numbers."""
    mode = vae.encode(images.to(vae.dtype)).latent_dist.mode().to(images.dtype)
    return (mode - vae.config.shift_factor) * vae.config.scaling_factor


def images_of_scaled(vae: Any, x_1: Tensor) -> Tensor:
    """The inverse: (B, 3, H, W) of latents (B, C, h, w)."""
    latents = x_1 / vae.config.scaling_factor + vae.config.shift_factor
    return vae.decode(latents.to(vae.dtype), return_dict=False)[0].to(x_1.dtype)


def as_clips(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) as clips of one frame (B, 3, 1, H, W); clips as they are."""
    return images if images.ndim == 5 else images.unsqueeze(2)


def standardised_latents(vae: Any, images: Tensor) -> Tensor:
    """(B, C, n, h, w) of images (B, 3, H, W) or clips (B, 3, frames, H, W) by a VAE of videos: the posterior's mode,
    each channel standardised; n is 1 for images."""
    mode = vae.encode(as_clips(images).to(vae.dtype)).latent_dist.mode().to(images.dtype)
    mean, std = _moments(vae, images)
    return (mode - mean) / std


def images_of_standardised(vae: Any, x_1: Tensor) -> Tensor:
    """The first frame (B, 3, H, W) of latents (B, C, n, h, w)."""
    return clips_of_standardised(vae, x_1)[:, :, 0]


def clips_of_standardised(vae: Any, x_1: Tensor) -> Tensor:
    """The inverse of :func:`standardised_latents`: all frames (B, 3, frames, H, W)."""
    mean, std = _moments(vae, x_1)
    decoded: Tensor = vae.decode((x_1 * std + mean).to(vae.dtype), return_dict=False)[0]
    return decoded.to(x_1.dtype)


def _moments(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of the latents, (1, C, 1, 1, 1)."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return mean.to(like.device, like.dtype), std.to(like.device, like.dtype)

"""Latent statistics: the only place where scale and shift between an autoencoder and a network are applied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facm.core.untrusted.torch_files import read_foreign

MOST_BYTES = 2**24
"""Bytes of a file of statistics: 16 MiB, of which the published ones have two thousand."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """The map from an autoencoder's latent z to a network's x = (z - mean) / std * multiplier.

    Latents that are only scaled, such as Stable Diffusion's by 0.18215, have mean 0, std 1 and that multiplier.
    Raises ValueError for other shapes, values that are not finite, or a std or multiplier that is not above 0.
    """

    mean: Tensor
    """Mean of each channel, (C,) float32."""
    std: Tensor
    """Standard deviation of each channel, (C,) float32, above 0."""
    multiplier: float = 1.0
    """Factor on the standardised latents, above 0; 1 with VA-VAE."""

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.std.shape != self.mean.shape:
            raise ValueError(
                f"latent statistics: mean {tuple(self.mean.shape)} and std {tuple(self.std.shape)}, expected (C,) twice"
            )
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):
            raise ValueError("latent statistics are not finite, or a standard deviation is not above 0")
        if not self.multiplier > 0:
            raise ValueError(f"multiplier = {self.multiplier}, expected a number above 0")

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 of mean, std and multiplier."""
        digest = hashlib.sha256(self.mean.double().numpy().tobytes() + self.std.double().numpy().tobytes())
        digest.update(f"{self.multiplier}".encode())
        return digest.hexdigest()[:16]

    def standardise(self, z: Tensor) -> Tensor:
        """Latents z (B, C, h, w) of the autoencoder -> the network's x of the same shape."""
        return (z - self._like(self.mean, z)) / self._like(self.std, z) * self.multiplier

    def restore(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`standardise`."""
        return x / self.multiplier * self._like(self.std, x) + self._like(self.mean, x)

    def _like(self, value: Tensor, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != self.channels:
            raise ValueError(
                f"latents have shape {tuple(x.shape)}, expected (B, {self.channels}, ...) for these statistics"
            )
        return value.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 2))


def scaled(channels: int, multiplier: float) -> Statistics:
    """Statistics that scale and do not shift."""
    return Statistics(torch.zeros(channels), torch.ones(channels), multiplier)


def load_statistics(path: Path, multiplier: float = 1.0) -> Statistics:
    """The statistics in the reference's file format: ``{'mean', 'std'}``, each (1, C, 1, 1).

    No code in the file is executed. Raises ValueError naming a file that is missing or has other content.
    """
    what = "latent statistics, {'mean', 'std'} of shape (1, C, 1, 1)"
    content = read_foreign(path, what, MOST_BYTES)
    mean, std = (content.get(name) if isinstance(content, Mapping) else None for name in ("mean", "std"))
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in (mean, std)]
    if not (isinstance(mean, Tensor) and isinstance(std, Tensor)) or not (
        mean.ndim == 4 and mean.numel() == mean.shape[1] and std.shape == mean.shape
    ):
        raise ValueError(f"{path}: mean {shapes[0]} and std {shapes[1]}; expected {what}")
    if mean.is_complex() or std.is_complex():
        raise ValueError(f"{path}: mean {mean.dtype} and std {std.dtype}; expected {what}")
    try:
        return Statistics(mean.flatten().float().clone(), std.flatten().float().clone(), multiplier)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

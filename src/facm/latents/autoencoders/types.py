"""What an autoencoder must offer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Autoencoder(Protocol):
    """A frozen ``nn.Module`` in eval mode, float32, on the device of its parameters.

    channels: of a latent. factor: pixels of the image per pixel of the latent, along a side. identity: name and hash
    of its weights (:func:`facm.core.hashing.identity_of`), recorded with every data set that it encoded.
    Latents are the autoencoder's own: :class:`facm.latents.statistics.Statistics` standardises them for a network.
    """

    channels: int
    factor: int
    identity: str

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x (B, 3, H, W) in [-1, 1], H and W multiples of ``factor`` -> latents (B, channels, H / factor, W / factor).

        noise: standard normals of the latents' shape: a sample of the posterior, where it has one; None: its mean.
        """
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, channels, h, w) -> images (B, 3, h * factor, w * factor), about [-1, 1] and not clamped."""
        ...

    def to(self, device: torch.device) -> Autoencoder: ...


@runtime_checkable
class AutoencoderConfig(Protocol):
    """An autoencoder's configuration: frozen; where its weights are, and what shape they have."""

    def build(self) -> Autoencoder:
        """Raises ValueError naming the file that is missing, or the keys that are missing or too many."""
        ...

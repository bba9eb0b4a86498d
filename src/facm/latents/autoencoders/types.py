"""The protocols of an autoencoder and of its configuration."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Autoencoder(Protocol):
    """A frozen ``nn.Module`` in eval mode, float32, on the device of its parameters.

    Its latents are not scaled; :class:`facm.latents.statistics.Statistics` standardises them for a network.

    channels: Number of channels of a latent.
    factor: Height and width of an image relative to its latent.
    identity: Name and hash of the weights (:func:`facm.core.hashing.identity_of`), recorded with every data set that
        the autoencoder encoded.
    """

    channels: int
    factor: int
    identity: str

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x (B, 3, H, W) in [-1, 1], H and W multiples of ``factor`` -> latents (B, channels, H / factor, W / factor).

        noise: Standard normal numbers of the latents' shape for a sample of the posterior; None for its mean. An
            autoencoder without a posterior ignores it.
        """
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, channels, h, w) -> images (B, 3, h * factor, w * factor), about [-1, 1] and not clamped."""
        ...

    def to(self, device: torch.device) -> Autoencoder:
        """The autoencoder, moved to ``device``."""
        ...


@runtime_checkable
class AutoencoderConfig(Protocol):
    """An autoencoder's configuration: frozen, with the paths and the shape of its weights."""

    def build(self) -> Autoencoder:
        """The autoencoder with its weights.

        Raises ValueError naming the file that is missing, or the weights that are missing or unexpected.
        """
        ...

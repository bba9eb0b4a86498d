"""What makes pictures of a model's latents: the VAE in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.foundation.families.base import Family
from facm.foundation.folder import VAE, ModelFolder, load_pipeline


@dataclass(frozen=True, eq=False)
class VAEDecoder:
    """Samples (B, ...) -> images (B, 3, H, W) in [-1, 1], clamped.

    family: how its latents are scaled.
    vae: the module of diffusers.
    identity: its hash, for the record.
    factor: pixels of an image along each side for one of a latent's.
    block: latents decoded at once, for a decoder takes much more memory than the network.
    """

    family: Family
    vae: Any
    identity: str
    factor: int
    block: int = 8

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        parts = [self.family.to_images(self.vae, part.to(self.vae.dtype)).float() for part in x.split(self.block)]
        return torch.cat(parts).clamp(-1, 1)


def vae_decoder(model: ModelFolder, device: torch.device, sha256: str | None = None) -> VAEDecoder:
    """The decoder of ``model``, in float32.

    sha256: hash of the VAE that it must be. Raises ValueError for another one.
    """
    found = model.identity(VAE)[VAE]
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{model.path / VAE} has the hash {found}, and the latents were made by {sha256}: expected that VAE"
        )
    pipe = load_pipeline(model, (VAE,))
    vae = pipe.vae.eval().requires_grad_(False).to(device)
    side = model.family.shape(pipe, 64 * model.family.multiple(pipe), 64 * model.family.multiple(pipe))[-1]
    factor = 64 * model.family.multiple(pipe) // side
    return VAEDecoder(model.family, vae, f"{model.parts[VAE][1]}-{found}", factor)

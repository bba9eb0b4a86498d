"""What makes pictures of a model's latents: the VAE in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.foundation.families.base import Family
from facm.foundation.folder import VAE, ModelFolder, load_pipeline


@dataclass(frozen=True, eq=False)
class VAEDecoder:
    """Samples (B, ...) -> images (B, 3, H, W) in [-1, 1], clamped; clips (B, 3, frames, H, W) of samples with more than
    one frame.

    family: how its latents are scaled.
    vae: the module of diffusers.
    identity: its hash, for the record.
    factor: pixels of an image along each side for one of a latent's.
    frame_multiple: a sample of n frames becomes 1 + (n - 1) times as many.
    block: pictures decoded at once, for a decoder takes much more memory than the network; of clips it is one.
    """

    family: Family
    vae: Any
    identity: str
    factor: int
    frame_multiple: int = 0
    block: int = 8

    def frames(self, shape: Sequence[int]) -> int:
        """Number of frames of what becomes of a sample of ``shape``."""
        return 1 + (shape[1] - 1) * self.frame_multiple if len(shape) == 4 else 1

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        clips = self.frames(x.shape[1:]) > 1
        decode = self.family.to_clips if clips else self.family.to_images
        parts = [decode(self.vae, part.to(self.vae.dtype)).float() for part in x.split(1 if clips else self.block)]
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
    multiple = model.family.frame_multiple(pipe)
    return VAEDecoder(model.family, vae, f"{model.parts[VAE][1]}-{found}", factor, multiple)

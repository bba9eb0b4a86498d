"""The configuration of the autoencoder at a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facm.core.untrusted.torch_files import read_foreign
from facm.latents.autoencoders.loading import tensors_of
from facm.latents.autoencoders.stable_diffusion import StableDiffusionVAE
from facm.latents.autoencoders.taef2 import TAEF2
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.latents.autoencoders.vavae import VAVAE, autoencoder_alone, fields_of


def autoencoder_at(paths: Sequence[str]) -> AutoencoderConfig:
    """The autoencoder in a diffusers folder, in a file with a VA-VAE of any size, or in TAEF2's encoder and decoder.

    paths: One path, or two for TAEF2, the encoder first.
    Raises ValueError for anything else.
    """
    if len(paths) == 2:
        return TAEF2(*paths)
    if len(paths) != 1:
        raise ValueError(f"autoencoder = {tuple(paths)}, expected one path, or TAEF2's encoder and decoder")
    path = Path(paths[0]).expanduser()
    if path.is_dir():
        return StableDiffusionVAE(paths[0])
    what = "the weights of an autoencoder, or a folder of one in the diffusers format"
    fields: dict[str, Any] = dict(fields_of(autoencoder_alone(tensors_of(read_foreign(path, what), path, what))))
    if not fields:
        raise ValueError(
            f"autoencoder = {paths[0]}: these are not the weights of a VA-VAE; expected those, a folder of a KL "
            "autoencoder in the diffusers format, or two files, TAEF2's encoder and decoder"
        )
    return VAVAE(paths[0], **fields)

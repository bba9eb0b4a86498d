"""Autoencoders: images to latents and back. A component is a frozen configuration with ``build()``."""

from facm.autoencoders.find import autoencoder_at
from facm.autoencoders.stable_diffusion import StableDiffusionVAE
from facm.autoencoders.taef2 import TAEF2
from facm.autoencoders.vavae import VAVAE

__all__ = ["TAEF2", "VAVAE", "StableDiffusionVAE", "autoencoder_at"]

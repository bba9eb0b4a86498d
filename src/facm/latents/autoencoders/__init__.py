"""Autoencoders between images and latents, each a frozen configuration with ``build()``."""

from facm.latents.autoencoders.find import autoencoder_at
from facm.latents.autoencoders.stable_diffusion import StableDiffusionVAE
from facm.latents.autoencoders.taef2 import TAEF2
from facm.latents.autoencoders.vavae import VAVAE

__all__ = ["TAEF2", "VAVAE", "StableDiffusionVAE", "autoencoder_at"]

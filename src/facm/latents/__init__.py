"""Autoencoders, prepared latents, their statistics and decoding."""

from facm.latents.autoencoders import TAEF2, VAVAE, StableDiffusionVAE
from facm.latents.dataset import Latents
from facm.latents.space import LatentSpace

__all__ = ["TAEF2", "VAVAE", "LatentSpace", "Latents", "StableDiffusionVAE"]

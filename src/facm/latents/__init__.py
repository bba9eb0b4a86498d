"""Between pixels and latents: autoencoders, prepared latents, their statistics, decoding."""

from facm.autoencoders import TAEF2, VAVAE, StableDiffusionVAE
from facm.data.latent_space import LatentSpace
from facm.data.latents import Latents

__all__ = ["TAEF2", "VAVAE", "LatentSpace", "Latents", "StableDiffusionVAE"]

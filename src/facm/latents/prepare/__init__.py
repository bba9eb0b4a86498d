"""Preparing latents: images to latents on disk."""

from facm.latents.prepare.pipeline import Summary, prepare
from facm.latents.prepare.verify import Report, verify

__all__ = ["Report", "Summary", "prepare", "verify"]

"""Images to latents on disk."""

from facm.prepare.latents import Summary, prepare
from facm.prepare.verify import Report, verify

__all__ = ["Report", "Summary", "prepare", "verify"]

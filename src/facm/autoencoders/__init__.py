"""Autoencoders: images to latents and back. A component is a frozen configuration with ``build()``."""

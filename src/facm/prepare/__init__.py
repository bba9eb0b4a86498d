"""Images to latents on disk."""

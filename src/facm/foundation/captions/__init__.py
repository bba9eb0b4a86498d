"""Prepared data of a text-to-image model: latents with the embeddings of their prompts, and the one null embedding."""

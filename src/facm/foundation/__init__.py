"""Text-to-image and video models of diffusers by name: their conventions, data, adapters (LoRA) and export."""

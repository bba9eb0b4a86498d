"""Students as others use them: a folder for diffusers, an adapter file (LoRA), an adapter file for ComfyUI."""

"""The exported students in diffusers' own pipeline, as somebody else would run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.foundation.folder import open_model
from facm.sampling.generate import noise
from facm.studies.text_demo.pipeline import SIDE


@torch.no_grad()
def by_diffusers(folder: Path, prompts: Sequence[str], num_steps: int, seed: int) -> Tensor:
    """Pictures (n, 1, H, W) in [-1, 1] from ``DiffusionPipeline.from_pretrained(folder)``, from the same first noise as
    this package's samples 0 .. n - 1 of ``seed``; what is drawn between the steps is of PyTorch's generator."""
    from diffusers import DiffusionPipeline

    model = open_model(folder)
    pipe: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    x_0 = noise(seed, range(len(prompts)), 0, model.family.shape(pipe, SIDE, SIDE))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        images = pipe(
            prompt=list(prompts),
            height=SIDE,
            width=SIDE,
            num_inference_steps=num_steps,
            latents=model.family.packed(x_0),
            output_type="pt",
            **model.family.unguided(),
        ).images
    return (2 * images.float() - 1).mean(1, keepdim=True)

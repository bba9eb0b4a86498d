"""Prompts that are encoded when pictures are wanted, by the text encoders in the model's folder."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from facm.core.cond import Cond, joined, mapped
from facm.foundation.folder import load_pipeline, open_model
from facm.foundation.prepare.sizes import check_frames
from facm.foundation.prepare.text import Cut, cut_of

BLOCK = 16
"""Prompts encoded at once."""


@torch.no_grad()
def encode_prompts(model: Path, prompts: Sequence[str], device: torch.device, negative: bool = False) -> Cond:
    """The condition of these prompts on the CPU, padded to the longest where their lengths vary.

    The text encoders are loaded for this, moved to ``device``, and released. Raises ValueError for no prompts, an empty
    model folder, or one of another family.
    """
    if not prompts:
        raise ValueError("prompts = (), expected at least one")
    opened = open_model(model)
    pipe = load_pipeline(opened, opened.encoders)
    for name in opened.encoders:
        part = getattr(pipe, name)
        if isinstance(part, torch.nn.Module):
            part.to(device)
    encoded: Cond = None
    for start in range(0, len(prompts), BLOCK):
        block = opened.family.encode(pipe, prompts[start : start + BLOCK], negative)
        part_of: Cond = {name: value.cpu() for name, value in block.items()}
        encoded = part_of if encoded is None else joined(encoded, part_of)
    del pipe
    gc.collect()
    return mapped(Tensor.contiguous, encoded)


def cut_prompts(model: Path, prompts: Sequence[str]) -> list[Cut]:
    """The prompts that the text encoder cuts, with what is left out."""
    opened = open_model(model)
    pipe = load_pipeline(opened, ())
    cuts = (cut_of(opened.family, pipe, i, prompt) for i, prompt in enumerate(prompts))
    return [cut for cut in cuts if cut is not None]


def shape_of(model: Path, like: tuple[int, ...], height: int = 0, width: int = 0, frames: int = 0) -> tuple[int, ...]:
    """Shape of a sample for pictures of this size in pixels, or clips of so many frames.

    like: the shape that holds where height and width, or frames, are 0.
    Raises ValueError for a size or a number of frames that cannot be.
    """
    opened = open_model(model)
    pipe = load_pipeline(opened, ())
    family, shape = opened.family, like
    if height or width:
        multiple = family.multiple(pipe)
        for name, value in (("height", height), ("width", width)):
            if value < 1 or value % multiple:
                raise ValueError(f"{name} = {value}, expected a multiple of {multiple}")
        shape = family.shape(pipe, height, width)
    if frames:
        check_frames(frames, family.frame_multiple(pipe), opened.pipeline)
    if len(shape) == 4:
        latents = 1 + (frames - 1) // family.frame_multiple(pipe) if frames else like[1]
        shape = (shape[0], latents, *shape[2:])
    return shape

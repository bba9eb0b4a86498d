"""What a text-to-image model is asked for: prompts with their embeddings, and the size of what it makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from facm.core.cond import Cond, taken
from facm.core.terminal import warn
from facm.core.types import Dataset, HasPrompts
from facm.data.checked import first_indices
from facm.distributed.process_group import ALONE, World
from facm.foundation.folder import open_model
from facm.foundation.network import DiffusersModel
from facm.foundation.prepare.text import cut_line
from facm.foundation.prompting import cut_prompts, encode_prompts, shape_of

MOST_SHOWN = 8
"""Prompts of the data that are shown where none are given."""


@dataclass(frozen=True)
class Prompts:
    """Prompts with their embeddings.

    texts: the prompts, one a picture.
    cond: their embeddings.
    shape: of one sample.
    fps: frames a second of clips.
    """

    texts: list[str]
    cond: Cond
    shape: tuple[int, ...]
    fps: float


def prompted(
    config: DiffusersModel,
    dataset: Dataset,
    texts: list[str],
    n: int | None = None,
    world: World = ALONE,
    height: int = 0,
    width: int = 0,
    frames: int = 0,
) -> Prompts:
    """``n`` of the prompts ``texts`` in turn (None: each once), or of the first ones of ``dataset`` without any.

    height, width: of the pictures in pixels, frames: of clips; 0: as in ``dataset``. Raises ValueError for sizes that
    cannot be, and for no prompts where the data have none.
    """
    model, shape = Path(config.path).expanduser(), tuple(dataset.shape)
    if height or width or frames:
        shape = shape_of(model, shape, height, width, frames)
    fps = open_model(model).family.fps
    if not texts:
        if not isinstance(dataset, HasPrompts):
            raise ValueError("prompts = None, and the data that the model was trained on have none: expected prompts")
        first = first_indices(dataset, len(dataset))
        which = first[np.arange(n or min(MOST_SHOWN, len(first))) % len(first)]
        return Prompts(dataset.prompts(which), dataset.read(which).cond, shape, fps)
    if empty := [text for text in texts if not str(text).strip()]:
        raise ValueError(f"prompts: {empty[0]!r} is empty, expected words; the null prompt is drawn by guidance alone")
    if world.first:
        for cut in cut_prompts(model, texts):
            warn(f"a prompt is longer than the text encoder takes, and is cut: {cut_line(cut)}")
    cond = encode_prompts(model, texts, world.device)
    places = torch.arange(n or len(texts)) % len(texts)
    return Prompts([texts[i] for i in places.tolist()], taken(cond, places), shape, fps)

"""What a trained network's samples are measured with and against, chosen by what there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from facm.core.types import Dataset, HasPrompts
from facm.data.pictures import CroppedPictures
from facm.distributed.process_group import ALONE, World
from facm.evaluation.evaluator import (
    CLIPEvaluator,
    Evaluator,
    build_clip,
    build_evaluator,
    evaluator_from_statistics,
)
from facm.evaluation.inception import Inception
from facm.latents.decode import ImageDecoder
from facm.pretrained.trained import Trained


def evaluator_for(
    trained: Trained,
    decoder: ImageDecoder | None,
    world: World = ALONE,
    *,
    features: Any = None,
    fid_stats: Path | None = None,
    real: Path | None = None,
    clip: Path | None = None,
    quantise: Literal["round", "truncate"] = "round",
    small_n: bool = False,
    progress: Callable[[int, int], None] | None = None,
    frames_per_clip: int | None = None,
) -> Evaluator | CLIPEvaluator:
    """All that the samples are measured with: the statistics in ``fid_stats``, the images in the folder ``real``, or
    the network's own data.

    features: the feature network; None: Inception with fid_stats or real, else a small classifier of the own data.
    clip: folder of a CLIP model, for its score, which is all that is measured where nothing else is given.
    quantise, small_n, progress: see :class:`Evaluator`. frames_per_clip: see :func:`build_evaluator`.
    Raises ValueError for a CLIP score of data without prompts, for two references, and where there is none.
    """
    if fid_stats is not None and real is not None:
        raise ValueError(f"fid_stats = {fid_stats} with real = {real}, expected one of them")
    network = None
    if clip is not None:
        if not isinstance(trained.dataset, HasPrompts):
            raise ValueError(f"clip = {clip} with {trained.path}, whose data have no prompts; expected none")
        network = build_clip(clip, world)
        if fid_stats is None and real is None and features is None:
            return CLIPEvaluator(network, world.device, world, quantise, progress)
    found = _against(trained, decoder, world, features, fid_stats, real, frames_per_clip)
    return dataclasses.replace(found, quantise=quantise, small_n=small_n, progress=progress, clip=network)


def _against(
    trained: Trained,
    decoder: ImageDecoder | None,
    world: World,
    features: Any,
    fid_stats: Path | None,
    real: Path | None,
    frames_per_clip: int | None,
) -> Evaluator:
    """Statistics of the real data in the chosen features."""
    if fid_stats is not None:
        return evaluator_from_statistics(fid_stats, features or Inception(""), world.device, world=world)
    dataset = trained.data.open()
    if real is not None:
        factor = 1 if decoder is None else decoder.factor
        sides = [side * factor for side in dataset.shape[-2:]]
        images = folder_of_images(real, sides[0], sides[-1])
        return build_evaluator(images, world.device, features or Inception(""), world)
    if decoder is not None or not len(dataset):
        what = "latents" if decoder is not None else "no data of its own"
        raise ValueError(
            f"{trained.path} has {what} to be measured against: expected fid_stats, a file of statistics, or real, a "
            "folder of images"
        )
    return build_evaluator(dataset, world.device, features, world, frames_per_clip)


def folder_of_images(path: Path, height: int, width: int) -> Dataset:
    """All images below ``path``, (3, height, width), without classes, cropped as facm latents encode does."""
    return CroppedPictures(str(path), height, None if width == height else width).open()

"""One evaluation: samples from a trained network, measured against real data."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from facm.core.cond import Cond
from facm.core.types import Dataset, HasPrompts
from facm.data.checked import first_indices
from facm.data.frames import Frames, as_images
from facm.distributed.collectives import by_first, in_order
from facm.evaluation.evaluator import CLIPEvaluator, Evaluator
from facm.evaluation.metrics import Measure, Measurement
from facm.evaluation.row import Row, row_of
from facm.evaluation.samples import Sampling
from facm.flow.conditions import Labels
from facm.pretrained.trained import Trained
from facm.sampling.generate import blocks
from facm.sampling.source import Source


def evaluate(trained: Trained, sampling: Sampling, evaluator: Evaluator | CLIPEvaluator) -> Row:
    """Draw samples and measure them; :func:`facm.evaluation.append_row` keeps the row, which is the same on all ranks.

    Clips are measured frame by frame, as images: there are as many samples as frames, each with the label or the prompt
    of its clip.

    The ranks share the batches, and the first one measures them in order: the numbers do not depend on how many ranks
    there are.

    Raises ValueError for fewer samples than a named metric needs, for samples that are not finite, and for a CLIP score
    of samples without prompts, or that are no images; and for other frames of clips than of the real ones.
    """
    began = time.monotonic()
    source = trained.source(evaluator.device)
    dataset, clip = trained.dataset, evaluator.clip
    _warn_of_other_data(trained)
    if clip is not None and not isinstance(dataset, HasPrompts):
        raise ValueError(f"clip = {clip.identity} with {trained.path}, whose data have no prompts; expected none")
    frames = sampling.frames(source.shape)
    n = sampling.n * (frames or 1)
    _check_frames(evaluator, frames)
    measure = _measure(evaluator, n, source)
    scores: list[Tensor] = []

    def extracted(indices: range) -> tuple[Tensor | None, ...]:
        cond = conditions(dataset, sampling, source, indices)
        labels = cond if isinstance(cond, Tensor) else None
        x = sampling.draw(source, indices, cond)
        if frames is not None:
            x = as_images(x, frames)
            labels = None if labels is None else labels.repeat_interleave(frames)
        found = (None, None, None) if measure is None else measure.extract(x, labels)
        if clip is None or not isinstance(dataset, HasPrompts):
            return (*found, None)
        prompts = [prompt for prompt in dataset.prompts(_places(dataset, indices)) for _ in range(frames or 1)]
        return (*found, clip.scores(x, prompts, evaluator.quantise))

    batches = blocks(sampling.n, sampling.batch_size)
    for indices, (features, correct, logits, score) in in_order(evaluator.world, batches, extracted):
        if measure is not None:
            assert features is not None
            measure.add(features, correct, logits)
        if score is not None:
            scores.append(score)
        if evaluator.progress is not None:
            evaluator.progress(indices.stop, sampling.n)

    def row() -> Row:
        measurement = Measurement(None, None, None, None, n, None, None, None, keep=0)
        if measure is not None:
            measurement = measure.result()
        if clip is not None:
            mean = math.fsum(torch.cat(scores).tolist()) / n
            measurement = replace(measurement, clip_score=mean, clip=clip.identity)
        return row_of(trained, sampling, evaluator, source, measurement, time.monotonic() - began)

    return by_first(evaluator.world, row)


def _warn_of_other_data(trained: Trained) -> None:
    """Where the data are no longer those of training, as where class folders are read in another order."""
    now = getattr(trained.dataset, "fingerprint", None)
    if trained.trained_on is not None and now is not None and now != trained.trained_on:
        warnings.warn(
            f"{trained.path} was trained on data with the fingerprint {trained.trained_on}, and they are now {now}: it "
            "is measured against other data, or with classes in another order (docs/data.md, classes.txt)",
            stacklevel=3,
        )


def _measure(evaluator: Evaluator | CLIPEvaluator, n: int, source: Source) -> Measure | None:
    """What compares n samples with real ones; None where nothing does."""
    if isinstance(evaluator, CLIPEvaluator):
        return None
    labelled = isinstance(source.condition, Labels) and evaluator.classes_are_the_data_sets
    return evaluator.measure(n, accuracy=None if labelled else False)


def _check_frames(evaluator: Evaluator | CLIPEvaluator, frames: int | None) -> None:
    """Raise ValueError where other frames are measured than the real clips were: the first and the last ones may well
    look otherwise than those between them."""
    data = None if isinstance(evaluator, CLIPEvaluator) else evaluator.data
    if isinstance(data, Frames) and frames is not None and data.per_clip != frames:
        raise ValueError(
            f"frames_per_clip: {frames} frames of each sample, and the evaluator has {data.per_clip} of each real one; "
            "expected build_evaluator with the same frames_per_clip"
        )


def _places(dataset: Dataset, indices: range) -> np.ndarray:
    """The samples of the data set whose prompts the samples ``indices`` have: in order, again and again; those of the
    first bucket where there are several, since samples are of its shape."""
    first = first_indices(dataset, len(dataset))
    return first[np.array(indices) % len(first)]


def conditions(dataset: Dataset, sampling: Sampling, source: Source, indices: range) -> Cond:
    """The labels of samples ``indices``, or the prompts of the data set."""
    if isinstance(dataset, HasPrompts):
        return dataset.read(_places(dataset, indices)).cond
    return sampling.cond(source.condition, indices)

"""Reading samples with checks: the only place where the samples of a data set are verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from facm.core.cond import Cond, parts
from facm.core.tensors import unusual
from facm.core.types import Batch, Dataset
from facm.data.frames import is_clip

HIGHEST = 10.0
"""The largest number in an image that can be of the scale of noise N(0, 1)."""


def read_checked(dataset: Dataset, indices: np.ndarray, mirrored: np.ndarray | None = None) -> Batch:
    """``dataset.read(indices)`` for indices (B,), with x_1, the condition and the labels verified.

    x_1 must be (B, *shape) float32 on the CPU, without a gradient, and finite, with its bucket's shape where the data
    set has several, and images, (1 or 3, H, W), within [-10, 10]; cond must be a tensor, or several by name, with one
    entry per sample; labels must be (B,) int64 in [0, num_classes) where the data set has classes.

    mirrored: Which samples to mirror, (B,) bool, for a data set with ``read_mirrored(indices, mirrored)``.
    Raises ValueError naming the data set and, for a bad value, the index of its sample and, where the data set offers
    ``place(index) -> str``, the file that holds it.
    """
    batch = dataset.read(indices) if mirrored is None else cast(Any, dataset).read_mirrored(indices, mirrored)
    name = name_of(dataset)
    _check_kind(batch, Batch, "what read returned", "a Batch", name)
    _check_plain(batch.x_1, "x_1", name)
    expected = (len(indices), *shape_of(dataset, indices))
    got = (tuple(batch.x_1.shape), batch.x_1.dtype)
    if got != (expected, torch.float32):
        raise ValueError(f"{name}: x_1 is {got[0]} {got[1]}, expected {expected} torch.float32")
    _check_finite(batch.x_1, "x_1", dataset, indices)
    _check_scale(batch.x_1, dataset, indices)
    if dataset.num_classes is not None:
        _check_labels(batch.cond, dataset.num_classes, dataset, indices)
    elif batch.cond is not None:
        _check_kind(batch.cond, (Tensor, Mapping), "cond", "a tensor, several by name, or None", name)
        for part, value in parts(batch.cond).items():
            what = f"cond[{part!r}]" if part != "" else "cond"
            _check_plain(value, what, name)
            if value.shape[:1] != (len(indices),):
                raise ValueError(f"{name}: {what} has shape {tuple(value.shape)}, expected ({len(indices)}, ...)")
            _check_finite(value, what, dataset, indices)
    return batch


def buckets_of(dataset: Dataset) -> tuple[np.ndarray, ...]:
    """The indices of the samples of each shape, for a data set with ``buckets``; empty for one of a single shape."""
    return tuple(getattr(dataset, "buckets", ()))


def shape_of(dataset: Dataset, indices: np.ndarray) -> tuple[int, ...]:
    """The shape of the samples ``indices`` (B,), which are of one bucket where the data set has ``buckets``: that of
    the first by its ``bucket_shape(index)``."""
    if len(buckets_of(dataset)) < 2 or not len(indices):
        return tuple(dataset.shape)
    return tuple(cast(Any, dataset).bucket_shape(int(indices[0])))


def first_indices(dataset: Dataset, n: int) -> np.ndarray:
    """The indices of the first n samples, or of as many as there are, all of one shape."""
    buckets = buckets_of(dataset)
    return buckets[0][:n] if buckets else np.arange(min(n, len(dataset)))


def name_of(dataset: Dataset) -> str:
    """The name of a data set in error messages: its attribute ``name`` if it has one, else its class."""
    return str(getattr(dataset, "name", type(dataset).__name__))


def check_choice(owner: str, option: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{owner}: {option} = {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_at_least(owner: str, option: str, value: float, lowest: float) -> None:
    """Raise ValueError unless ``value`` >= ``lowest``."""
    if not value >= lowest:
        raise ValueError(f"{owner}: {option} = {value!r}, expected at least {lowest}")


def _sample(dataset: Dataset, index: int) -> str:
    place = getattr(dataset, "place", None)
    return f"{name_of(dataset)}: sample {index}" + (f" ({place(index)})" if place else "")


def _check_kind(value: Any, kind: Any, what: str, expected: str, name: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name}: {what} is of type {type(value).__name__}, expected {expected}")


def _check_plain(value: Any, what: str, name: str) -> None:
    """Raise ValueError unless ``value`` is a tensor of numbers on the CPU, as a data set makes it."""
    _check_kind(value, Tensor, what, "a tensor", name)
    if (kind := unusual(value)) or value.device.type != "cpu":
        raise ValueError(f"{name}: {what} is {kind} on {value.device.type}, expected plain numbers on cpu")
    if value.requires_grad:
        raise ValueError(f"{name}: {what} requires a gradient, expected plain numbers, as detach() makes them")


def _check_finite(x: Tensor, what: str, dataset: Dataset, indices: np.ndarray) -> None:
    # In numpy: torch would wake its threads, which costs many times more while training occupies the cores.
    finite = np.isfinite((x.float() if x.is_floating_point() and x.itemsize < 4 else x).numpy())
    if not finite.all():
        bad = int(indices[np.argwhere(~finite)[0, 0]])
        raise ValueError(f"{_sample(dataset, bad)} has non-finite values in {what}")


def _check_scale(x_1: Tensor, dataset: Dataset, indices: np.ndarray) -> None:
    """Images and clips are in [-1, 1]; standardised ones, and noise itself, stay below ten standard deviations."""
    shape = tuple(dataset.shape)
    if not (is_clip(shape) or (len(shape) == 3 and shape[0] in (1, 3))) or not x_1.numel():
        return
    x = x_1.numpy()
    low, high = float(x.min()), float(x.max())
    if max(-low, high) > HIGHEST:
        bad = int(indices[np.argwhere(np.abs(x) > HIGHEST)[0, 0]])
        raise ValueError(
            f"{_sample(dataset, bad)} is of another scale: x_1 runs over [{low:g}, {high:g}], expected images in "
            "[-1, 1], as x / 127.5 - 1 makes them of [0, 255]"
        )


def _check_labels(labels: Cond, num_classes: int, dataset: Dataset, indices: np.ndarray) -> None:
    if not isinstance(labels, Tensor) or labels.shape != (len(indices),) or labels.dtype != torch.int64:
        got = f"{tuple(labels.shape)} {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(
            f"{name_of(dataset)}: cond is {got}, expected labels ({len(indices)},) torch.int64 of {num_classes} classes"
        )
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        bad = int(outside.nonzero()[0])
        raise ValueError(
            f"{_sample(dataset, int(indices[bad]))} has label {int(labels[bad])}, expected one within "
            f"[0, {num_classes})"
        )

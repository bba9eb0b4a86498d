"""A data set that was given from Python as an object: a ``torch.utils.data.Dataset``, a ``datasets.Dataset``, a tensor,
an array, or a list of samples.

A run records what it was, never the object. Opened where the object is not, it has its shape and no samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from facm.core.component import Count, Range, component, shown
from facm.core.cond import Cond
from facm.core.types import Batch, Data, Dataset
from facm.data.in_memory import from_bytes

Item = Callable[[Any], Any]
"""What turns an item of the data set into a sample x, or into (x, condition)."""
SAMPLES = ("x", "image", "images", "img", "pixel_values", "sample", "video", "audio", "data")
"""Names by which a sample is looked for in an item with names, in this order."""
LABELS = ("label", "labels", "fine_label", "class_label", "class_labels", "y", "target", "cond")
"""The same of its label or other condition."""
_given: dict[GivenData, tuple[Any, Item | None]] = {}


@dataclass(frozen=True)
@component
class GivenData(Data):
    """Samples that were given from Python."""

    kind: str
    """What they are, as in torchvision.datasets.mnist:MNIST, with their number; it is part of the run's identity."""
    shape: Annotated[tuple[Count, ...], Range("[1, 16]")]
    """Shape of one sample, such as (C, H, W)."""
    num_classes: Annotated[int, Range("[1, 16777216]")] | None = None
    """Number of classes; None where items have no label, or another condition."""
    conditioned: bool = False
    """Whether items have a condition that is no label."""

    def open(self) -> Dataset:
        if self not in _given:
            return _Absent(self)
        dataset, item = _given[self]
        return _Items(self, dataset, item)


class _Absent:
    """The shape of samples that are not here."""

    flip = False

    def __init__(self, config: GivenData) -> None:
        self.config, self.shape, self.num_classes = config, config.shape, config.num_classes
        self.why_empty = (
            f"data = {config.kind} were given from Python and are not here: expected them, given again in Python, as "
            "in facm.resume(out, network=net, data=dataset)"
        )

    def __len__(self) -> int:
        return 0

    def read(self, indices: np.ndarray) -> Batch:
        raise ValueError(self.why_empty)


class _Items:
    """Samples of the object, each read when it is asked for."""

    flip = False

    def __init__(self, config: GivenData, dataset: Any, item: Item | None) -> None:
        self.config, self.dataset, self.item = config, dataset, item
        self.shape, self.num_classes, self.name = config.shape, config.num_classes, f"data ({config.kind})"

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: np.ndarray) -> Batch:
        """Raises ValueError naming the sample that cannot be read, or is of another shape or type than the first."""
        found = [_read(self.dataset, int(i), self.item, self.config) for i in indices]
        x_1 = torch.stack([x for x, _ in found])
        if self.num_classes is None and not self.config.conditioned:
            return Batch(x_1)
        return Batch(x_1, _stacked([cond for _, cond in found], self.name))


def given_data(data: Any, classes: int | None = None, item: Item | None = None, labels: bool = True) -> Data:
    """The configuration of samples that are given as an object, which this process remembers; ``data`` itself where it
    is a configuration already.

    data: a map-style ``torch.utils.data.Dataset``, a ``datasets.Dataset``, a tensor or array (N, ...), a pair of
        samples and labels (N,), or a sequence of items. An item is a sample x, a pair (x, label), or names of both.
        Bytes (uint8) and pictures of Pillow become floats in [-1, 1]; floats stay as they are.
    classes: number of classes of integer labels; None: as the data set says it.
    item: turns an item into x or (x, condition), for items of another form.
    labels: False to leave labels out.
    Raises ValueError for data without length or samples, and for items that hold no sample.
    """
    if isinstance(data, Data) and not isinstance(data, Sequence):
        return data
    data = _columns(data)
    n = _length(data)
    x, cond = _parts(_item(data, 0), item, "data: sample 0", labels)
    known = classes if classes is not None else _classes_of(data)
    is_label = _is_label(cond)
    if cond is not None and is_label and known is None:
        raise ValueError(
            "data: items have a label and classes = None: expected the number of classes, or labels = False to leave "
            "them out"
        )
    if classes is not None and not is_label:
        raise ValueError(f"classes = {classes}, and items have no integer label: expected None, or (x, label)")
    config = GivenData(
        f"{type(data).__module__}:{type(data).__qualname__}, {n} samples",
        tuple(x.shape),
        known if is_label else None,
        cond is not None and not is_label,
    )
    chosen = item if labels else (lambda value: _parts(value, item, "data", False)[0])
    _given[config] = (data, chosen)
    return config


def _columns(data: Any) -> Any:
    """A pair of all samples and all labels as a sequence of pairs; anything else as it is. Raises ValueError for a
    DataLoader, for pairs of different lengths, and for data that cannot be read by number."""
    if isinstance(data, torch.utils.data.DataLoader):
        raise ValueError(
            "data = a DataLoader, expected its data set, as in data = loader.dataset: batches are made here"
        )
    arrays = (Tensor, np.ndarray)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, arrays) for part in data):
        if len(data[0]) != len(data[1]):
            raise ValueError(f"data: {len(data[0])} samples and {len(data[1])} labels, expected one label per sample")
        return torch.utils.data.TensorDataset(*(torch.as_tensor(part) for part in data))
    if not hasattr(data, "__getitem__"):
        raise ValueError(
            f"data = {type(data).__name__} has no length or no data[i], expected a data set whose samples are read by "
            "number: a map-style Dataset, a list, a tensor; an iterable one has to be collected, as in list(data)"
        )
    return data


def _length(data: Any) -> int:
    try:
        n = len(data)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"data = {type(data).__name__} has no length, expected a data set whose samples are counted and read by "
            "number: len(data) and data[i]; an iterable one has to be collected, as in list(data)"
        ) from error
    if n == 0:
        raise ValueError(f"data = {type(data).__name__} is empty, expected at least one sample")
    return n


def _classes_of(data: Any) -> int | None:
    """The number of classes that a data set names, as those of torchvision and of datasets do."""
    features: Any = getattr(data, "features", None)
    for name in LABELS if isinstance(features, Mapping) else ():
        if isinstance(count := getattr(features.get(name), "num_classes", None), int):
            return count
    named = getattr(data, "classes", None)
    return len(named) if isinstance(named, Sequence) and not isinstance(named, str) and named else None


def _item(data: Any, index: int) -> Any:
    try:
        return data[index]
    except Exception as error:  # of a user's own data set
        raise ValueError(f"data: sample {index} cannot be read ({type(error).__name__}: {error})") from error


def _read(data: Any, index: int, item: Item | None, config: GivenData) -> tuple[Tensor, Any]:
    x, cond = _parts(_item(data, index), item, f"data: sample {index}", True)
    if tuple(x.shape) != config.shape:
        raise ValueError(
            f"data: sample {index} has shape {tuple(x.shape)}, and the first one {config.shape}: expected samples of "
            "one shape; crop, resize or pad them in the data set"
        )
    if config.num_classes is not None and not _is_label(cond):
        raise ValueError(f"data: sample {index} has the label {shown(cond)}, expected an integer as the first one has")
    return x, cond


def _parts(value: Any, item: Item | None, what: str, labels: bool) -> tuple[Tensor, Any]:
    """x (...) float32, and its label or other condition or None, of an item."""
    if item is not None:
        try:
            value = item(value)
        except Exception as error:
            raise ValueError(f"{what}: item = {item!r} failed ({type(error).__name__}: {error})") from error
    cond = None
    if isinstance(value, Mapping):
        x = next((value[name] for name in SAMPLES if name in value), None)
        cond = next((value[name] for name in LABELS if name in value), None)
        if x is None:
            raise ValueError(
                f"{what} has the parts {', '.join(map(str, value))}, expected the sample as one of "
                f"{', '.join(SAMPLES)}, or item = a function that takes it out"
            )
    elif isinstance(value, tuple | list) and value and not isinstance(value[0], int | float):
        x, cond = value[0], value[1] if len(value) > 1 else None
    else:
        x = value
    return _as_sample(x, what), cond if labels else None


def _as_sample(x: Any, what: str) -> Tensor:
    """x as float32: bytes and pictures in [-1, 1], channels first; numbers as they are."""
    if hasattr(x, "getbands"):  # a picture of Pillow
        if x.mode not in ("L", "RGB"):
            raise ValueError(f"{what} is a picture of mode {x.mode}, expected L or RGB: convert it in the data set")
        pixels = np.asarray(x)
        return torch.from_numpy(from_bytes(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)))
    try:
        made = torch.as_tensor(x).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} is {shown(x)}, expected a tensor, an array or a picture") from error
    if made.dtype == torch.uint8:
        return made.float() / 127.5 - 1
    if made.is_complex() or made.dtype == torch.bool or made.ndim == 0:
        raise ValueError(f"{what} is {made.dtype} of shape {tuple(made.shape)}, expected numbers of shape (C, ...)")
    return made.float().contiguous()


def _is_label(cond: Any) -> bool:
    if isinstance(cond, Tensor | np.ndarray | np.generic):
        made = torch.as_tensor(cond)
        return made.ndim == 0 and not made.is_floating_point() and made.dtype != torch.bool
    return isinstance(cond, int) and not isinstance(cond, bool)


def _stacked(conds: list[Any], name: str) -> Cond:
    """Labels (B,) int64, or the parts of other conditions, one entry per sample."""
    if all(_is_label(cond) for cond in conds):
        return torch.tensor([int(cond) for cond in conds])
    try:
        if isinstance(conds[0], Mapping):
            return {key: torch.stack([torch.as_tensor(cond[key]) for cond in conds]) for key in conds[0]}
        return torch.stack([torch.as_tensor(cond) for cond in conds])
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{name}: conditions of a batch do not stack ({error}), expected tensors of one shape in each"
        ) from error

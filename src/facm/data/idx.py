"""The idx files of MNIST, Fashion-MNIST and similar data sets."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from facm.core.component import Range, component
from facm.core.types import Data
from facm.core.untrusted.unpack import PACKED, Stream, TooLarge, unpacked
from facm.data.in_memory import InMemory

PREFIXES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
@component
class Idx(Data):
    """Grey images and labels from ``{train,t10k}-images-idx3-ubyte`` and ``-labels-idx1-ubyte``, raw or ``.gz``.

    Samples are (1, H, W) in [-1, 1]; labels lie in [0, num_classes).
    ``open`` raises ValueError naming the file that is missing, of the wrong length, or has another header.
    Source: LeCun, Cortes and Burges (MNIST); Zalando Research (Fashion-MNIST)."""

    folder: str
    """Folder that contains the files."""
    split: Literal["train", "test"] = "train"
    """Which images to read: for training or for testing (MNIST: 60 000 and 10 000 images of 28 x 28)."""
    flip: bool = False
    """Mirror each image left to right with probability 1/2."""
    pad: Annotated[int, Range("[0, 1024]")] = 0
    """Background pixels added on every side: 2 turns 28 x 28 into 32 x 32."""
    num_classes: Annotated[int, Range("[1, 16777216]")] = 10
    """Number of classes, at least 1."""

    def open(self) -> InMemory:
        prefix = PREFIXES[self.split]
        image_file = _find(Path(self.folder).expanduser(), f"{prefix}-images-idx3-ubyte")
        label_file = _find(Path(self.folder).expanduser(), f"{prefix}-labels-idx1-ubyte")
        images, labels = read_idx(image_file, axes=3), read_idx(label_file, axes=1)
        if len(images) != len(labels):
            raise ValueError(f"{label_file}: {len(labels)} labels, expected {len(images)} as images in {image_file}")
        border = (self.pad, self.pad)
        images = np.pad(images, ((0, 0), border, border))[:, None]
        return InMemory(images, labels, self.num_classes, self.flip, name=f"Idx({self.folder}, {self.split})")


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The uint8 array with ``axes`` axes in an idx file, which may be packed by gzip.

    Raises ValueError naming the file unless magic number, sizes and length agree."""
    try:
        with unpacked(path) as file:
            return _array(file, path, axes)
    except (*PACKED, TooLarge) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error


def _array(file: Stream, path: Path, axes: int) -> np.ndarray:
    header = 4 * (1 + axes)
    start = file.read(header)
    if len(start) < header:
        raise ValueError(f"{path}: {len(start)} bytes, expected an idx header of {header}")
    magic, *shape = (int(word) for word in np.frombuffer(start, ">u4"))
    expected = 0x0800 + axes  # two zero bytes, 8 = unsigned bytes, number of axes
    if magic != expected:
        raise ValueError(f"{path}: magic number {magic:#010x}, expected {expected:#010x} (unsigned bytes, {axes} axes)")
    if 0 in shape:
        raise ValueError(f"{path}: header says shape {tuple(shape)}, expected no empty axis")
    content = file.read(math.prod(shape) + 1)  # beyond its end, where gzip's checksum stands
    if len(content) != math.prod(shape):
        raise ValueError(
            f"{path}: {len(content)} bytes of data, expected {math.prod(shape)} by the header {tuple(shape)}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _find(folder: Path, stem: str) -> Path:
    for path in (folder / stem, folder / f"{stem}.gz"):
        if os.path.lexists(path):
            return path
    raise ValueError(f"Idx: folder = {str(folder)!r} holds neither {stem} nor {stem}.gz, expected one of them")

"""A folder or a zip archive of images, which are decoded when they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Annotated, Literal

import numpy as np
import torch

from facm.core.component import Range, component
from facm.core.types import Batch, Data
from facm.core.untrusted.picture import picture
from facm.data.classes import NO_CLASSES, Classes, classes_of
from facm.data.in_memory import from_bytes
from facm.data.places import Place, place_at

Pixels = Annotated[int, Range("[1, 16384]")]
"""Height and width of an image."""
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
@component
class ImageFolder(Data):
    """Images (png, jpg, jpeg, webp, bmp) anywhere below a folder, or in a zip archive, ordered by their relative paths.

    Hidden files and folders are skipped and links are followed. Each image is rotated upright (EXIF), composed over
    black where it is transparent, converted to RGB or grey, cropped to its central square and resized to
    ``size`` x ``size`` with Pillow's antialiased bicubic filter: (channels, size, size) in [-1, 1]. An image of exactly
    that size keeps its pixels.

    Classes are those of a ``dataset.json`` beside the images (EDM, StyleGAN), or the first folder in each path: in the
    order of a ``classes.txt``, one name a line, if there is one; as numbers if all are; otherwise by sorted name.

    ``open`` raises ValueError for a missing or empty folder, an image without a class, an entry of dataset.json or a
    line of classes.txt that does not fit, or a folder reached twice through links; ``read`` raises ValueError naming an
    image that cannot be decoded or has over 8 bits a channel."""

    path: str
    """Folder or zip archive that contains the images."""
    size: Pixels
    """Height and width of the samples in pixels."""
    flip: bool = True
    """Mirror each image left to right with probability 1/2."""
    classes_from_folders: bool = True
    """Take classes from dataset.json or the first sub-folder in an image's path; otherwise no classes."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""

    def open(self) -> ImageFiles:
        place, classes = place_at("ImageFolder", self.path), NO_CLASSES
        if self.classes_from_folders:
            remedy = "set classes_from_folders = False for images without classes"
            classes = classes_of("ImageFolder", place, remedy)
        shape = (self.channels, self.size, self.size)
        return ImageFiles(place, classes, shape, self.flip, f"ImageFolder({self.path})")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """An opened :class:`ImageFolder`.

    place: Where the N images are.
    of_classes: Their classes.
    shape: (C, H, W) of a sample.
    flip: Whether samples may be mirrored.
    name: The data set's name in error messages.
    """

    place: Place
    of_classes: Classes
    shape: tuple[int, ...]
    flip: bool
    name: str

    @property
    def files(self) -> tuple[str, ...]:
        """Relative paths of the images."""
        return self.place.files

    @property
    def labels(self) -> np.ndarray | None:
        """Class labels (N,) int64, or None without classes."""
        return self.of_classes.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by number; empty where only numbers are known."""
        return self.of_classes.names

    @property
    def num_classes(self) -> int | None:
        return self.of_classes.count

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the samples wherever the folder lies: a hash of the files' names below it and
        sizes, and the classes in their order, but not of the images themselves. Raises ValueError naming a file that is
        gone."""
        digest = hashlib.sha256("\0".join(self.classes).encode(errors="surrogateescape"))
        for file in self.files:
            digest.update(f"\0{file}\0{self.place.size(file)}".encode(errors="surrogateescape"))
        if self.labels is not None and not self.classes:  # which are not in the names of the files
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> Batch:
        """Images ``indices`` (B,): x_1 (B, C, H, W) in [-1, 1], cond (B,) int64 or None."""
        read = reader(self.place, self.shape[0], self.shape[1])
        with ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(read, (self.files[i] for i in indices)))
        x = torch.from_numpy(from_bytes(np.stack(images)))
        return Batch(x, None if self.labels is None else torch.from_numpy(self.labels[indices]))


def reader(place: Place, channels: int, size: int) -> Callable[[str], np.ndarray]:
    """What decodes one of the images of ``place``; see :func:`decode`."""
    return lambda file: decode(place.opened(file), place.named(file), channels, size)


def decode(content: str | IO[bytes], name: str, channels: int, size: int) -> np.ndarray:
    """One image as uint8 (channels, size, size), cropped and resized as :class:`ImageFolder` describes."""
    from PIL import Image

    image = picture(content, name)
    if channels == 1:
        image = image.convert("L")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)

"""A folder of images, which are decoded when they are read."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

from facm.core.component import Range, component
from facm.core.types import Batch, Data
from facm.core.untrusted.picture import picture
from facm.data.in_memory import from_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
Pixels = Annotated[int, Range("[1, 16384]")]
"""Height and width of an image."""
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
@component
class ImageFolder(Data):
    """Images (png, jpg, jpeg, webp, bmp) anywhere below a folder, ordered by their relative paths.

    Hidden files and folders are skipped and links are followed. Each image is rotated upright (EXIF), composed over
    black where it is transparent, converted to RGB or grey, cropped to its central square and resized to
    ``size`` x ``size`` with Pillow's antialiased bicubic filter: (channels, size, size) in [-1, 1]. An image of exactly
    that size keeps its pixels.

    ``open`` raises ValueError for a missing or empty folder, an image without a class, or a folder reached twice
    through links; ``read`` raises ValueError naming an image that cannot be decoded or has over 8 bits a channel."""

    path: str
    """Folder that contains the images."""
    size: Pixels
    """Height and width of the samples in pixels."""
    flip: bool = True
    """Mirror each image left to right with probability 1/2."""
    classes_from_folders: bool = True
    """Use the first sub-folder in an image's path as its class, numbered by sorted name; otherwise no classes."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""

    def open(self) -> ImageFiles:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise ValueError(f"ImageFolder: path = {self.path!r}, expected an existing folder")
        files = _find_images(root)
        if not files:
            raise ValueError(f"ImageFolder: path = {self.path!r} holds no images, expected {', '.join(SUFFIXES)} files")
        classes: tuple[str, ...] = ()
        labels = None
        if self.classes_from_folders:
            remedy = "set classes_from_folders = False for images without classes"
            labels, classes = class_folders("ImageFolder", root, files, remedy)
        shape = (self.channels, self.size, self.size)
        return ImageFiles(str(root), files, labels, classes, shape, self.flip, f"ImageFolder({self.path})")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """An opened :class:`ImageFolder`.

    root: The folder.
    files: Paths of the N images relative to ``root``.
    labels: Class labels (N,) int64, or None without classes.
    classes: Names of the classes by number.
    shape: (C, H, W) of a sample.
    flip: Whether samples may be mirrored.
    name: The data set's name in error messages.
    """

    root: str
    files: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    flip: bool
    name: str

    @property
    def num_classes(self) -> int | None:
        return len(self.classes) or None

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the samples wherever the folder lies: a hash of the files' names below it and
        sizes, and the classes, but not of the images themselves. Raises ValueError naming a file that is gone."""
        digest = hashlib.sha256("\0".join(self.classes).encode(errors="surrogateescape"))
        for file in self.files:
            path = os.path.join(self.root, file)
            try:
                size = os.stat(path).st_size
            except OSError as error:
                raise ValueError(f"{path}: unreadable image ({error.strerror or error})") from error
            digest.update(f"\0{file}\0{size}".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> Batch:
        """Images ``indices`` (B,): x_1 (B, C, H, W) in [-1, 1], cond (B,) int64 or None."""
        paths = [os.path.join(self.root, self.files[i]) for i in indices]
        with ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(lambda path: decode(path, self.shape[0], self.shape[1]), paths))
        x = torch.from_numpy(from_bytes(np.stack(images)))
        return Batch(x, None if self.labels is None else torch.from_numpy(self.labels[indices]))


def class_folders(owner: str, root: Path, files: tuple[str, ...], remedy: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels (N,) int64 of files relative to ``root``, and the names of the classes by number.

    Raises ValueError naming an image that lies in no class folder, with ``remedy`` as advice.
    """
    loose = next((file for file in files if "/" not in file), None)
    if loose is not None:
        raise ValueError(f"{owner}: {root / loose} lies in no class folder, expected {root}/<class>/...; {remedy}")
    folders = [file.split("/", 1)[0] for file in files]
    classes = tuple(sorted(set(folders)))
    numbers = {name: i for i, name in enumerate(classes)}
    return np.array([numbers[name] for name in folders], np.int64), classes


def decode(path: str, channels: int, size: int) -> np.ndarray:
    """One image as uint8 (channels, size, size), cropped and resized as :class:`ImageFolder` describes."""
    from PIL import Image

    image = picture(path, path)
    if channels == 1:
        image = image.convert("L")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def _find_images(root: Path) -> tuple[str, ...]:
    """The relative paths of all images with forward slashes, sorted, so that the order is the same on every system."""
    seen: dict[str, str] = {}
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link into a loop, or images that would count twice
            raise ValueError(f"ImageFolder: {folder} and {seen[real]} are one folder, expected to reach it once")
        seen[real] = folder
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        images = (name for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES))
        found += [(relative / name).as_posix() for name in images]
    return tuple(sorted(found))

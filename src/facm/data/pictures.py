"""Images as they are stored, to be prepared: sources that open into :class:`Pictures`, read one at a time; and their
crops as preparing makes them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from facm.core.types import Batch
from facm.data.checked import check_at_least
from facm.data.crop import centre_crop
from facm.data.folder import THREADS, ImageFolder, class_folders, picture
from facm.data.in_memory import from_bytes

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Pictures:
    """N images with labels. files: a name for each, unique. labels: (N,) int64 from 0. classes: names by number, or
    empty where only numbers are known. read: the content of image i, from any thread. name: of the source."""

    files: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    read: Callable[[int], str | IO[bytes]]
    name: str

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_classes(self) -> int:
        return len(self.classes) or int(self.labels.max()) + 1

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the sha256 over names, labels and classes: not over the images themselves."""
        digest = hashlib.sha256("\0".join([*self.files, "", *self.classes]).encode(errors="surrogateescape"))
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def image(self, index: int) -> Image:
        """Image ``index``, see :func:`picture`. Raises ValueError naming the one that cannot be decoded."""
        return picture(self.read(index), f"{self.name}: {self.files[index]}")


@dataclass(frozen=True)
class FolderPictures:
    """The images below ``path`` in :class:`~facm.data.folder.ImageFolder`'s order, with its classes: sub-folders by
    sorted name, which is also ImageNet's numbering (``train/n01440764/*.JPEG`` is class 0).

    classes_from_folders: False: all are of one class."""

    path: str
    classes_from_folders: bool = True

    def open(self) -> Pictures:
        files = ImageFolder(self.path, size=1, classes_from_folders=False).open()
        labels = np.zeros(len(files), np.int64)
        classes: tuple[str, ...] = ("all",)
        if self.classes_from_folders:
            remedy = "move it into a class folder"
            labels, classes = class_folders("FolderPictures", Path(files.root), files.files, remedy)
        return Pictures(
            files.files,
            labels,
            classes,
            lambda index: os.path.join(files.root, files.files[index]),
            f"FolderPictures({self.path})",
        )


@dataclass(frozen=True)
class CroppedPictures:
    """The images below ``path`` in :class:`~facm.data.folder.ImageFolder`'s order, without classes, each cropped to
    ``size`` x ``size`` as ``facm prepare`` crops it: what samples decoded from its latents are compared with.

    ``open`` raises ValueError for a missing or empty folder; ``read`` raises ValueError naming the image that cannot
    be decoded, or has a side below ``size``: enlarged it would be no fair measure of sharp samples."""

    path: str
    size: int

    def __post_init__(self) -> None:
        check_at_least("CroppedPictures", "size", self.size, 1)

    def open(self) -> Crops:
        files = ImageFolder(self.path, self.size, classes_from_folders=False).open()
        return Crops(files.root, files.files, (3, self.size, self.size), f"CroppedPictures({self.path})")


@dataclass(frozen=True, eq=False)
class Crops:
    """Opened :class:`CroppedPictures`: ``files`` relative to ``root``."""

    root: str
    files: tuple[str, ...]
    shape: tuple[int, ...]
    name: str
    num_classes: int | None = None
    flip: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> Batch:
        """Images ``indices`` (B,): x_1 (B, 3, size, size) float32 in [-1, 1]."""
        with ThreadPoolExecutor(THREADS) as pool:
            crops = np.array(list(pool.map(self._crop, indices)), np.uint8).reshape(len(indices), *self.shape)
        return Batch(torch.from_numpy(from_bytes(crops)))

    def _crop(self, index: int) -> np.ndarray:
        path, size = os.path.join(self.root, self.files[index]), self.shape[1]
        image = picture(path, path)
        if min(image.size) < size:
            raise ValueError(f"{path} is {image.width} x {image.height}, smaller than {size}")
        return centre_crop(image, size).transpose(2, 0, 1)

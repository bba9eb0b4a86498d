"""Images in their original size, as sources for preparing latents, and the crops that preparing makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from facm.core.component import component
from facm.core.types import Batch, Data
from facm.core.untrusted.picture import picture
from facm.data.classes import NO_CLASSES, classes_of
from facm.data.crop import centre_crop
from facm.data.folder import THREADS, Pixels
from facm.data.in_memory import from_bytes
from facm.data.places import Place, place_at

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Pictures:
    """N images with labels, read one at a time.

    files: A unique name for each image.
    labels: Class labels (N,) int64 from 0.
    classes: Names of the classes by number; empty where only numbers are known.
    read: Returns the path or the open file of image i; may be called from any thread.
    name: The source's name in error messages.
    """

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
        """The first 16 hex digits of the sha256 of names, labels and classes, but not of the images themselves."""
        digest = hashlib.sha256("\0".join([*self.files, "", *self.classes]).encode(errors="surrogateescape"))
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def image(self, index: int) -> Image:
        """Image ``index``, decoded by :func:`picture`. Raises ValueError naming an image that cannot be decoded."""
        return picture(self.read(index), f"{self.name}: {self.files[index]}")


@dataclass(frozen=True)
@component
class FolderPictures:
    """The images below a folder or in a zip archive, in the order and with the classes of
    :class:`~facm.data.folder.ImageFolder`.

    Classes by sorted names of their folders are also ImageNet's (``train/n01440764/*.JPEG`` is class 0)."""

    path: str
    """Folder or zip archive that contains the images."""
    classes_from_folders: bool = True
    """Take classes from dataset.json or the first sub-folder in a path; otherwise all images are of one class."""

    def open(self) -> Pictures:
        place, found = place_at("FolderPictures", self.path), NO_CLASSES
        if self.classes_from_folders:
            found = classes_of("FolderPictures", place, "move it into a class folder")
        labels, names = found.labels, found.names
        if labels is None:
            labels, names = np.zeros(len(place.files), np.int64), ("all",)
        return Pictures(
            place.files, labels, names, lambda index: place.opened(place.files[index]), f"FolderPictures({self.path})"
        )


@dataclass(frozen=True)
@component
class CroppedPictures(Data):
    """The images below a folder in :class:`~facm.data.folder.ImageFolder`'s order, without classes, each cropped as for
    prepared latents: the reference that samples decoded from such latents are compared with.

    ``open`` raises ValueError for a missing or empty folder; ``read`` raises ValueError naming an image that cannot
    be decoded or has a side below ``size``, since enlarged images are no fair reference for sharp samples."""

    path: str
    """Folder that contains the images."""
    size: Pixels
    """Height and width of the crops in pixels, at least 1."""
    width: Pixels | None = None
    """Width where it is another than the height, which ``size`` then is."""

    def open(self) -> Crops:
        place = place_at("CroppedPictures", self.path)
        return Crops(place, (3, self.size, self.width or self.size), f"CroppedPictures({self.path})")


@dataclass(frozen=True, eq=False)
class Crops:
    """Opened :class:`CroppedPictures`.

    place: Where the images are.
    shape: (3, height, width).
    name: The data set's name in error messages.
    num_classes: None: there are no classes.
    flip: False: samples are not mirrored.
    """

    place: Place
    shape: tuple[int, ...]
    name: str
    num_classes: int | None = None
    flip: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Relative paths of the images."""
        return self.place.files

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> Batch:
        """Images ``indices`` (B,): x_1 (B, 3, height, width) float32 in [-1, 1]."""
        with ThreadPoolExecutor(THREADS) as pool:
            crops = np.array(list(pool.map(self._crop, indices)), np.uint8).reshape(len(indices), *self.shape)
        return Batch(torch.from_numpy(from_bytes(crops)))

    def _crop(self, index: int) -> np.ndarray:
        file = self.files[index]
        path = self.place.named(file)
        _, height, width = self.shape
        image = picture(self.place.opened(file), path)
        if image.height < height or image.width < width:
            size = f"{width} x {height}" if width != height else f"{height}"
            raise ValueError(f"{path} is {image.width} x {image.height}, smaller than {size}")
        return centre_crop(image, height, width).transpose(2, 0, 1)

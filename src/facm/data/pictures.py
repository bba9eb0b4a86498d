"""Images as they are stored, to be prepared: sources that open into :class:`Pictures`, read one at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np

from facm.data.folder import ImageFolder, picture

if TYPE_CHECKING:
    from PIL.Image import Image


class Source(Protocol):
    """Where images are: frozen, and opened into :class:`Pictures`."""

    def open(self) -> Pictures: ...


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
        files = ImageFolder(self.path, size=1, classes_from_folders=self.classes_from_folders).open()
        labels = np.zeros(len(files), np.int64) if files.labels is None else files.labels
        return Pictures(
            files.files,
            labels,
            files.classes or ("all",),
            lambda index: os.path.join(files.root, files.files[index]),
            f"FolderPictures({self.path})",
        )


def source_at(path: str) -> Source:
    """What to read the images at ``path`` with: a tar file or a folder of them, else a folder of images."""
    from facm.data.webdataset import TarPictures, tar_files

    return TarPictures(path) if tar_files(Path(path).expanduser()) else FolderPictures(path)

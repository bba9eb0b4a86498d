"""Sources of images for preparing latents: folders or tar files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from facm.data.pictures import FolderPictures, Pictures

if TYPE_CHECKING:
    pass


class Source(Protocol):
    """The configuration of a source: frozen, and opened into :class:`Pictures`."""

    def open(self) -> Pictures: ...


def source_at(path: str) -> Source:
    """The source at ``path``: a tar file or a folder of tar files, otherwise a folder or a zip archive of images."""
    from facm.data.webdataset import TarPictures, tar_files

    return TarPictures(path) if tar_files(Path(path).expanduser()) else FolderPictures(path)

"""Where images lie: below a folder, or in a zip archive, such as EDM's and StyleGAN's tools write."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from pathlib import Path
from typing import IO, Protocol, cast

from facm.core.untrusted.door import read_bytes
from facm.core.untrusted.picture import MOST_BYTES
from facm.core.untrusted.zip import Archive, Damaged, open_zip

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MOST_LABELS = 2**28
"""Bytes of a dataset.json or a classes.txt."""


class Place(Protocol):
    """Images by relative paths with forward slashes.

    where: the folder or the archive, for messages.
    files: of all images, sorted, so that the order is the same on every system.
    """

    @property
    def where(self) -> str: ...

    @property
    def files(self) -> tuple[str, ...]: ...

    def text(self, name: str) -> str | None:
        """The text file ``name`` at the top; None where there is none. Raises ValueError where it cannot be read."""
        ...

    def opened(self, file: str) -> str | IO[bytes]:
        """The path, or the content, of an image. May be called from any thread."""
        ...

    def size(self, file: str) -> int:
        """Bytes of an image. Raises ValueError naming one that is gone."""
        ...

    def named(self, file: str) -> str:
        """An image as messages name it."""
        ...


def place_at(owner: str, path: str) -> Place:
    """The folder, or the zip archive, at ``path``. Raises ValueError for anything else, and where it has no images."""
    root = Path(path).expanduser()
    if root.suffix.lower() == ".zip" and not root.is_dir():
        if not os.path.lexists(root):
            raise ValueError(f"{owner}: path = {path!r}, expected an existing folder or zip archive")
        place: Place = Zipped(root)
    elif root.is_dir():
        place = Folder(root)
    else:
        raise ValueError(f"{owner}: path = {path!r}, expected an existing folder, or a zip archive")
    if not place.files:
        raise ValueError(f"{owner}: path = {path!r} holds no images, expected {', '.join(SUFFIXES)} files")
    return place


class Folder:
    """The images anywhere below a folder. Hidden files and folders are skipped, links are followed."""

    def __init__(self, root: Path) -> None:
        self.where, self.files = str(root), _images_below(root)

    def text(self, name: str) -> str | None:
        path = os.path.join(self.where, name)
        return _text(read_bytes(Path(path), MOST_LABELS), path) if os.path.lexists(path) else None

    def opened(self, file: str) -> str:
        return os.path.join(self.where, file)

    def size(self, file: str) -> int:
        try:
            return os.stat(self.opened(file)).st_size
        except OSError as error:
            raise ValueError(f"{self.opened(file)}: unreadable image ({error.strerror or error})") from error

    def named(self, file: str) -> str:
        return self.opened(file)


class Zipped:
    """The images in a zip archive, whose directory is read once in each process."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self._start()
        names = (name for name in self._sizes() if name.lower().endswith(SUFFIXES))
        self.files = tuple(sorted(name for name in names if not _is_hidden(name)))

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "where": self.where, "files": self.files}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._lock, self._closing = threading.Lock(), contextlib.ExitStack()
        self._process, self._archive = 0, cast(Archive | None, None)

    def text(self, name: str) -> str | None:
        sizes = self._sizes()
        if name not in sizes:
            return None
        return _text(self._read(name, sizes[name], MOST_LABELS), self.named(name))

    def opened(self, file: str) -> IO[bytes]:
        sizes = self._sizes()
        return io.BytesIO(self._read(file, sizes[file], MOST_BYTES))

    def size(self, file: str) -> int:
        sizes = self._sizes()
        if file not in sizes:
            raise ValueError(f"{self.named(file)}: unreadable image (it is not there any more)")
        return sizes[file]

    def named(self, file: str) -> str:
        return f"{self.where}/{file}"

    def _read(self, name: str, size: int, most: int) -> bytes:
        if size > most:
            raise ValueError(f"{self.named(name)} has {size} bytes, expected at most {most}")
        archive = self._opened()
        try:
            return archive.read(name)
        except Damaged as error:
            raise ValueError(f"{self.where}: {error}") from error

    def _sizes(self) -> dict[str, int]:
        return self._opened().sizes

    def _opened(self) -> Archive:
        """The archive, opened anew in a process that was forked: the place in an open file is shared by both."""
        with self._lock:
            if self._archive is None or self._process != os.getpid():
                self._closing = contextlib.ExitStack()
                try:
                    self._archive = self._closing.enter_context(open_zip(self.path))
                except Damaged as error:
                    raise ValueError(f"{self.where}: {error}") from error
                self._process = os.getpid()
            return self._archive


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not text in UTF-8 ({error.reason} at byte {error.start})") from error


def _is_hidden(name: str) -> bool:
    """Whether a part of an entry's name is hidden, as macOS's ._ files and __MACOSX are."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _images_below(root: Path) -> tuple[str, ...]:
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

"""Reading zip archives with a bound on their directory and on what they unpack to."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from facm.core.untrusted.door import open_regular
from facm.core.untrusted.unpack import FREE, RATIO

MOST_DIRECTORY = 2**23
"""Bytes of the archive's directory, of which each entry takes about a hundred."""

BROKEN = (OSError, EOFError, ValueError, KeyError, RuntimeError, OverflowError, struct.error, zlib.error)
"""What Python's reader raises for damaged archives, besides ``zipfile.BadZipFile``; for a password, RuntimeError."""


class Damaged(ValueError):
    """What is wrong with an archive, without its name."""


class Archive:
    """The entries of an open zip archive.

    sizes: Bytes of each entry, unpacked, by its name.
    packed: Whether any entry is compressed.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        entries = archive.infolist()
        self._archive = archive
        self.sizes = {entry.filename: entry.file_size for entry in entries}
        self.packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """An entry as a stream, whose checksum is verified at its end. Raises Damaged, also for what is done inside."""
        with named(name), self._archive.open(name) as stream:
            yield stream

    def read(self, name: str) -> bytes:
        """The content of an entry. Raises Damaged."""
        with self.open(name) as stream:
            return stream.read()

    def verify(self) -> None:
        """Read all entries. Raises Damaged where a checksum is another."""
        for name in self.sizes:
            with self.open(name) as stream:
                while stream.read(2**20):
                    pass


@contextlib.contextmanager
def named(entry: str) -> Iterator[None]:
    """Turns what Python's reader raises into Damaged."""
    try:
        yield
    except Damaged:
        raise
    except (zipfile.BadZipFile, *BROKEN) as error:
        raise Damaged(f"{entry}: broken zip entry ({error})") from error


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[Archive]:
    """A zip archive whose entries together unpack to at most RATIO times its size, or FREE where that is more.

    Raises Damaged for one that is broken, has an entry twice, or would unpack to more; what
    :func:`facm.core.untrusted.door.open_regular` raises otherwise.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            archive = zipfile.ZipFile(_Careful(file))
        except (zipfile.BadZipFile, *BROKEN) as error:
            raise Damaged(f"not a whole zip archive ({error})") from error
        with archive:
            _check(archive.infolist(), size)
            yield Archive(archive)


def _check(entries: list[zipfile.ZipInfo], size: int) -> None:
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Damaged(f"it holds {twice!r:.80} twice, expected each entry once")
    odd = next((e for e in entries if e.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), None)
    if odd is not None:
        raise Damaged(f"{odd.filename!r:.80} is packed by method {odd.compress_type}, expected stored or deflated")
    total, most = sum(entry.file_size for entry in entries), max(FREE, RATIO * size)
    if total > most:
        raise Damaged(f"it unpacks to {total} bytes, expected at most {most} from {size}")


class _Careful(io.RawIOBase):
    """A file that refuses to be read in larger pieces than a directory may have."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(MOST_DIRECTORY + 1 if size < 0 else min(size, MOST_DIRECTORY + 1))
        if len(content) > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has more than {MOST_DIRECTORY} bytes")
        return content

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

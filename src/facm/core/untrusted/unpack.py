"""Unpacking compressed files with a bound on what comes out, to the end, where the checksum stands."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from facm.core.untrusted.door import open_regular

RATIO = 100
"""How often a file may unpack to its own size; pictures and labels are packed less than ten times."""
FREE = 2**26
"""Bytes that any file may unpack to: 64 MiB."""
MOST_UNPACKED = 2**31
"""Bytes that no file may exceed, unpacked: 2 GiB."""

PACKED = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What Python's readers of compressed files raise for damaged ones."""

OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


class TooLarge(ValueError):
    """A file that would unpack to more than it may; the message says how much."""


class Stream:
    """The content of a file, unpacked, of which at most ``most`` bytes are read; it moves forward only."""

    def __init__(self, content: IO[bytes], most: int) -> None:
        self._content, self._most, self._place = content, most, 0

    def read(self, size: int) -> bytearray:
        """Up to ``size`` bytes. Raises one of PACKED, or TooLarge."""
        content = bytearray()
        while len(content) < size:  # in parts: a size that is only claimed fills no memory
            part = self._content.read(min(size - len(content), 2**20))
            if not part:
                break
            self._place += len(part)
            if self._place > self._most:
                raise TooLarge(f"it unpacks to more than {self._most} bytes, expected at most that many")
            content += part
        return content

    def seek(self, place: int) -> None:
        """Move forward to ``place``, or to the end. Raises as :meth:`read` does."""
        while self._place < place and self.read(min(place - self._place, 2**20)):
            pass


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Stream]:
    """A regular file as a stream, unpacked where it begins as files of gzip, bzip2 or xz do.

    At most RATIO times the file's size, or FREE where that is more, and never over MOST_UNPACKED is unpacked.
    Raises what :func:`facm.core.untrusted.door.open_regular` raises.
    """
    with open_regular(path) as file:
        start = file.read(6)
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
        if opener is None:
            yield Stream(file, size)
        else:
            with opener(file, "rb") as content:
                yield Stream(content, min(max(FREE, RATIO * size), MOST_UNPACKED))

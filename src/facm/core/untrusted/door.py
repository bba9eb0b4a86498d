"""The door for files that others wrote: regular files only, bounded in size and depth, and no code."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

MOST_TEXT = 2**24
"""Bytes of a text file such as run.json: 16 MiB."""
MOST_DEPTH = 64
"""Brackets inside each other in JSON. Components are nested less than ten deep."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NOT_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[^\[\]{}"]+', re.DOTALL)


def open_regular(path: Path, links: bool = True) -> BufferedReader:
    """Open a regular file for reading, without waiting for the other end of a pipe.

    links: follow a symbolic link at the path's end; False inside a folder that somebody else may have made.
    Raises FileNotFoundError where there is none, ValueError naming ``path`` and what it is instead, OSError where it
    cannot be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is a symbolic link{' without end' * links}, expected a regular file") from error
        if error.errno == errno.ENXIO:
            raise ValueError(f"{path} is a socket or a device, expected a regular file") from error
        raise
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
            raise ValueError(f"{path} is {kind}, expected a regular file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path, most: int, links: bool = True) -> bytes:
    """The content of a regular file of at most ``most`` bytes. Raises ValueError naming it otherwise; see
    :func:`open_regular`."""
    with open_regular(path, links) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} has more than {most} bytes, expected at most that many")
    return content


def read_text(path: Path, most: int = MOST_TEXT, links: bool = True) -> str:
    """The UTF-8 text of a regular file; see :func:`read_bytes`. Raises ValueError for bytes that are no text."""
    content = read_bytes(path, most, links)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start})") from error


def read_json(path: Path, most: int = MOST_TEXT, links: bool = True) -> Any:
    """The content of a JSON file; see :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, most, links), str(path))


def parse_json(text: str, where: str) -> Any:
    """JSON from elsewhere. Raises ValueError naming ``where`` for text that is none or nested deeper than MOST_DEPTH.

    NaN and Infinity, which Python writes, are read: what a number may be is for its reader to say.
    """
    depth = 0
    for bracket in _NOT_BRACKETS.sub("", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MOST_DEPTH:
            raise ValueError(f"{where} has more than {MOST_DEPTH} brackets inside each other, expected fewer")
    try:
        return json.loads(text)
    except ValueError as error:  # also of whole numbers with thousands of digits
        raise ValueError(f"{where} is not JSON ({error})") from error

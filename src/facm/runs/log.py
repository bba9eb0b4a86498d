"""The run's log: one JSON object a line, each with its clock ``images``."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from facm.core.files import atomically, is_at, open_in_place, write_text
from facm.core.untrusted.door import parse_json, read_text

TIMED = frozenset(
    {
        *("images_per_s", "images_per_s_per_rank", "seconds_left", "data_wait", "mfu"),
        *("memory_gb", "peak_memory_gb"),
    }
)
"""Keys whose values depend on the machine and the moment; all others are the same whenever the run is repeated."""
MOST = 2**28
"""Bytes of a log that is read: 256 MiB, about a million records."""


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line, whole, whoever else appends at the same time. Raises ValueError for a link or no regular file."""
    with os.fdopen(_to_append(path), "ab") as file:
        if (size := os.fstat(file.fileno()).st_size) and os.pread(file.fileno(), 1, size - 1) != b"\n":
            file.write(b"\n")  # a kill cut the last line short: it stays alone
        file.write(json.dumps(record).encode() + b"\n")


def _to_append(path: Path) -> int:
    """A handle to the file of this name and of no other, locked until it is closed."""
    while True:
        handle = open_in_place(path, os.O_RDWR | os.O_APPEND)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        current = is_at(handle, path)  # it may have been replaced while another process had the lock
        if current and os.fstat(handle).st_nlink == 1:
            return handle
        try:
            if current:  # it has other names, which are not the run's: a copy of its own takes its place
                with atomically(path) as partial:
                    shutil.copyfile(path, partial)
        finally:
            os.close(handle)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole records; a line that is none, as one that a kill cut short, is left out. Raises ValueError for a file
    that is no regular one, too large, or not text."""
    try:
        text = read_text(path, MOST, links=False)
    except FileNotFoundError:
        return []
    records = []
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):
            record = parse_json(line, str(path))
            if isinstance(record, dict):
                records.append(record)
    return records


def rewind(path: Path, images: int) -> None:
    """Drop what was logged after ``images``: it will be logged again, the same, by the resumed run."""
    if os.path.lexists(path):
        kept = [record for record in read(path) if _clock(record) <= images]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def _clock(record: dict[str, Any]) -> float:
    images = record.get("images")
    return images if isinstance(images, int | float) else float("inf")

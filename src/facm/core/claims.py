"""A folder that one process at a time writes in."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from facm.core.files import is_at, open_in_place

LOCK = ".lock"
"""The file in the folder that is locked. It stays, empty; the lock ends with the process, however that ends."""


class HeldError(RuntimeError):
    """Another process holds the folder."""


@contextlib.contextmanager
def held(folder: Path, make: bool = False) -> Iterator[None]:
    """Hold ``folder`` until the context or the process ends.

    make: make it where there is none. Raises HeldError where it is held, ValueError where its lock is no regular file.
    """
    handle = _locked(folder, make)
    try:
        yield
    finally:
        os.close(handle)


def _locked(folder: Path, make: bool) -> int:
    while True:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = open_in_place(folder / LOCK, os.O_RDWR)
        except FileNotFoundError:
            if make:  # it was taken away again, by the process that had made it
                continue
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(handle)
            raise HeldError(f"{folder} is in use by another process") from error
        except BaseException:
            os.close(handle)
            raise
        if is_at(handle, folder / LOCK):
            return handle
        os.close(handle)  # the holder removed it meanwhile: another process would lock another file


def contents(folder: Path) -> list[Path]:
    """What is in ``folder`` besides its lock."""
    return [path for path in folder.iterdir() if path.name != LOCK]

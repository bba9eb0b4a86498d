"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

UMASK = os.umask(0)  # it can only be read by setting it
os.umask(UMASK)


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Write to the yielded path; afterwards ``path`` has its old or the complete new content, whatever happens."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.chmod(0o666 & ~UMASK)  # some writers create files that only their owner may read
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)  # the rename itself must survive a power cut
    except BaseException:
        with contextlib.suppress(OSError):  # free the space on a full disk; the first error says more
            partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file's content or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")

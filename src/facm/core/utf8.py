"""Names of files for libraries that take only those in UTF-8."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def in_utf8(path: Path) -> Iterator[str]:
    """A name of the file at ``path`` to read it by, inside: its own, or, where its bytes are no UTF-8, one of the file
    opened here. Raises OSError where that cannot be opened."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        handle = os.open(path, os.O_RDONLY)
        try:
            yield f"/dev/fd/{handle}"
        finally:
            os.close(handle)
    else:
        yield str(path)

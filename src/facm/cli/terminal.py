"""What is shown while a command works, and how text from elsewhere reaches the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator

READER_GONE = 141
"""Exit status when the reader of the output goes away, as of a process that SIGPIPE ends."""


def plain(text: object, keep: str = "") -> str:
    """``text`` without control characters, which could move the cursor or change colours: each becomes a question mark.

    keep: control characters that stay.
    """
    return "".join("?" if unicodedata.category(c) == "Cc" and c not in keep else c for c in str(text))


def marked(text: object) -> str:
    """``text`` for rich, which then prints it as it is."""
    from rich.markup import escape

    return escape(plain(text))


def say(text: str) -> None:
    """Print lines that may quote names of files and runs."""
    print(plain(text, keep="\n\t"))


def warn(text: str) -> None:
    """Print to standard error lines that may quote names of files and runs."""
    print(plain(text, keep="\n\t"), file=sys.stderr)


def counting(what: str) -> Callable[[int, int], None]:
    """A callback (done, n) that shows how many of ``what`` are done; on a terminal only, where the line can be
    overwritten."""

    def report(done: int, n: int) -> None:
        if sys.stderr.isatty():
            end = "\r\033[K" if done >= n else "\r"
            print(f"{done} of {n} {what}", end=end, file=sys.stderr, flush=True)

    return report


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """End quietly where the reader of the output is gone, as with ``facm -h | head -1``. Raises SystemExit(141)."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where its failure can be handled, rather than at the interpreter's end
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # rich has noticed
            raise SystemExit(READER_GONE) from None
        raise
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # the interpreter flushes once more: into nothing
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.dup2(nowhere, sys.stderr.fileno())
        raise SystemExit(READER_GONE) from None

"""Standard output and error as a command finds them: closed, full, left by the reader, without Unicode, or narrow."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from facm.core.terminal import plain, warn

READER_GONE = 141
"""Exit status of a command that only prints, where the reader of its output is gone: as of a process that SIGPIPE
ends."""
NARROWEST, WIDEST, USUAL = 20, 500, 80
"""Columns of a terminal between which output is laid out, and those of one that has none in that range."""


class Output(io.FileIO):
    """A file descriptor to write text to, which swallows what cannot be written: work must not end because nobody reads
    what is said about it.

    error: why it could not be written; None as long as it can.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a pipe that does not block, and is full
                select.select([], [self.fileno()], [])
            return written
        except OSError as error:
            self.error = error
            nowhere = os.open(os.devnull, os.O_WRONLY)  # for all that follows, from children, too
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


@contextlib.contextmanager
def standard_streams(only_prints: bool = False) -> Iterator[None]:
    """Inside, printing never fails: characters that the encoding lacks are written as escapes, a closed stream is the
    null device, and what a stream does not take is lost.

    Where standard output was lost, a command that worked ends as it would have, with a warning unless only its reader
    was gone. One that only prints has failed: it raises SystemExit(141) for a reader that is gone, else SystemExit(2).
    """
    _open_what_is_closed()
    format_warning = warnings.formatwarning
    out, err = sys.stdout, sys.stderr
    output, sys.stdout = _replaced(out, 1)
    _, sys.stderr = _replaced(err, 2)
    warnings.formatwarning = lambda *args, **keywords: plain(format_warning(*args, **keywords), keep="\n\t")
    try:
        with _usable_width():
            yield
        status: Any = 0
    except SystemExit as ended:
        if ended.code:
            raise
        status = ended
    finally:
        sys.stdout.flush()
        error = None if output is None else output.error
        if error is not None and not isinstance(error, BrokenPipeError):
            warn(f"{'error' if only_prints else 'warning'}: standard output could not be written: {error.strerror}")
        sys.stderr.flush()
        sys.stdout, sys.stderr, warnings.formatwarning = out, err, format_warning
    if error is not None and only_prints:
        raise SystemExit(READER_GONE if isinstance(error, BrokenPipeError) else 2)
    if status:
        raise status


def _replaced(stream: TextIO | None, descriptor: int) -> tuple[Output | None, TextIO]:
    """A stream to ``descriptor`` in place of ``stream``; or itself, where that is no file, as in a notebook."""
    if stream is None:
        encoding, at_once = "utf-8", False
    else:
        try:
            descriptor = stream.fileno()
            at_once = bool(stream.line_buffering or stream.write_through)  # type: ignore[attr-defined]
        except (OSError, AttributeError):
            return None, stream
        encoding = stream.encoding
        stream.flush()
    output = Output(descriptor)
    replaced = io.TextIOWrapper(io.BufferedWriter(output), encoding, "backslashreplace", line_buffering=at_once)
    return output, replaced


def _open_what_is_closed() -> None:
    """The null device for each standard stream that is closed: the next file that is opened would become it."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)


@contextlib.contextmanager
def _usable_width() -> Iterator[None]:
    """Inside, everybody sees a terminal of a usable width: libraries fail or never end at one that is one column wide,
    at a COLUMNS that is no number, and at a huge one."""
    before = {name: os.environ[name] for name in ("COLUMNS", "LINES") if name in os.environ}
    for name, value in before.items():
        if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) > 0):
            del os.environ[name]
    columns = int(os.environ["COLUMNS"]) if "COLUMNS" in os.environ else _columns_of_the_terminal()
    if not NARROWEST <= columns <= WIDEST:
        os.environ["COLUMNS"] = str(NARROWEST if columns < NARROWEST else WIDEST)
    try:
        yield
    finally:
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)
        os.environ.update(before)


def _columns_of_the_terminal() -> int:
    """Of the first standard stream that is one, and has a width."""
    for descriptor in range(3):
        with contextlib.suppress(OSError):
            if columns := os.get_terminal_size(descriptor).columns:
                return columns
    return USUAL

"""Signals that ask a run to save and end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """A list that gets the name of each signal that arrived.

    SIGTERM, SIGHUP (the terminal was closed) and the first Ctrl-C are only noted, for the loop to save and end after
    its step; the second Ctrl-C interrupts at once. A SIGHUP that the process was started to ignore, as ``nohup`` does,
    stays ignored.
    """
    stop: list[str] = []

    def note(number: int, frame: Any) -> None:
        stop.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    noted = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        noted.append(signal.SIGHUP)
    try:
        before = {number: signal.signal(number, note) for number in noted}
    except ValueError:  # only the main thread may install handlers; elsewhere signals are the caller's business
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

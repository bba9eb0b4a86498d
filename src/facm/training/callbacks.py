"""Who is told how a run goes: trackers, progress, and a user's own.

All are called on the first rank alone, between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from facm.runs.config import Run
from facm.training.loop import Outcome


class Callback:
    """A run as seen by who watches it; override what is of interest.

    Any of these may raise :class:`StopTraining`: the run then saves and ends after its step, and can be resumed.
    """

    def on_begin(self, run: Run, folder: Path, images: int) -> None:
        """Training begins in ``folder``, or goes on at the clock ``images``."""

    def on_log(self, record: dict[str, Any]) -> None:
        """A line of log.jsonl: numbers by name, with the clock ``images``."""

    def on_preview(self, images: int, picture: Path) -> None:
        """A picture of samples has been drawn."""

    def on_checkpoint(self, images: int, checkpoint: Path) -> None:
        """A checkpoint has been written."""

    def on_end(self, outcome: Outcome) -> None:
        """Training has ended or was interrupted, after saving. Not called where it ends with an error."""


AsCallback = Callback | Callable[[dict[str, Any]], None]
"""A callback, or a function that is called with every line of the log."""


class _OnLog(Callback):
    def __init__(self, function: Callable[[dict[str, Any]], None]) -> None:
        self.on_log = function  # type: ignore[method-assign, assignment]


def as_callbacks(given: Sequence[AsCallback]) -> list[Callback]:
    """``given``, functions wrapped. Raises ValueError for anything else."""
    found: list[Callback] = []
    for each in given:
        if isinstance(each, Callback):
            found.append(each)
        elif callable(each) and not isinstance(each, type):
            found.append(_OnLog(each))
        else:
            raise ValueError(f"callbacks: {each!r}, expected an object of facm.Callback, or a function of a log record")
    return found

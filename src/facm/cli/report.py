"""facm report | watch: what runs have come to, on a page or in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from facm.core.terminal import say

Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def report(runs: Runs, out: Path | None = None) -> None:
    """Write one self-contained page of a run, or of several side by side: curves, samples, evaluations, configuration.

    Args:
        runs: folders of runs.
        out: page to write; default: report.html in the first run's folder. Only a page of this command is overwritten.
    """
    from facm.reports.page import write_report

    say(write_report(runs, out))


def watch(runs: Runs, page: bool = False, port: int = 8770, every: float = 5.0, once: bool = False) -> None:
    """Watch a run: its numbers, their curves, the newest samples, the time left; Ctrl-C leaves it alone.

    Args:
        runs: folder of the run; with --page also of several.
        page: as a page on this machine, which loads itself again.
        port: of the page; 0 for any free one.
        every: seconds between two looks.
        once: look once.
    """
    from facm.reports.server import serve
    from facm.reports.terminal import watch as in_terminal

    if not every >= 0.1:
        raise ValueError(f"--every {every:g}, expected at least 0.1 seconds")
    if not runs or (len(runs) > 1 and not page):
        raise ValueError(f"{len(runs)} runs, expected one, or several with --page")
    if page:
        serve(runs, port, every)
    else:
        in_terminal(runs[0], every, once)

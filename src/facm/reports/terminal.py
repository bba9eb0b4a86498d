"""A run in the terminal: its newest numbers with what they were before, its newest picture, the time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from facm.core.terminal import console, is_terminal, plain
from facm.reports.history import History, is_number, read_history

if TYPE_CHECKING:
    from rich.console import Group

BARS = "▁▂▃▄▅▆▇█"
FIRST = ("loss", "anchor", "shortcut", "flow", "tangent_rms", "clamped", "grad_norm", "lr")
"""Numbers in the order in which they are of interest; the others follow."""
LEFT_OUT = frozenset({"images", "seconds_left"})


def sparkline(values: Sequence[float], width: int) -> str:
    """``values`` as ``width`` bars at most: each the mean of as many values, from the lowest to the highest."""
    if not values:
        return ""
    size = -(-len(values) // width)
    means = [sum(part) / len(part) for part in (values[k : k + size] for k in range(0, len(values), size))]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in means)


def frame(history: History, width: int = 40) -> Group:
    """What is shown of a run."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    last = history.last
    images = last.get("images", 0)
    part = min(images / history.length, 1.0) if history.length else 0.0
    head = f"{history.name}: {images:,} of {history.length:,} images ({part:.0%})"
    if history.finished:
        head += ", finished"
    elif is_number(last.get("seconds_left")):
        left = int(last["seconds_left"])
        head += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    table = Table("", "now", "so far", box=box.SIMPLE, padding=(0, 1))
    for key in [*(k for k in FIRST if k in last), *(k for k in last if k not in FIRST and k not in LEFT_OUT)]:
        values = [y for _, y in history.series(key)]
        if values:
            table.add_row(plain(key), f"{values[-1]:.4g}", sparkline(values, width))
    warning = [Text(plain(history.warning), "yellow")] if history.warning else []
    lines = [Text(plain(head), "bold"), *warning, table if history.records else Text("no line of the log yet")]
    if history.pictures:
        lines.append(Text(plain(f"newest samples: {history.pictures[-1][1]}")))
    return Group(*lines)


def watch(path: Path, seconds: float, once: bool = False) -> None:
    """Show the run until it has finished, or Ctrl-C. Where lines cannot be overwritten, or ``once``, one frame."""
    terminal = console()
    width = max(8, terminal.width - 36)
    history = read_history(path)
    if once or not is_terminal():
        terminal.print(frame(history, width))
        return
    from rich.live import Live

    try:
        with Live(frame(history, width), console=terminal, auto_refresh=False) as live:
            while not history.finished:
                time.sleep(seconds)
                history = read_history(path)
                live.update(frame(history, width), refresh=True)
    except KeyboardInterrupt:  # the way to leave
        return

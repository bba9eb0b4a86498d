"""What a person sees while a run trains: loss, images a second, time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from facm.core.terminal import console, is_terminal, plain, say
from facm.runs.config import Run
from facm.training.loop import Reporter

LINE_EVERY_SECONDS = 10.0


@contextlib.contextmanager
def progress(run: Run, title: str, quiet: bool = False) -> Iterator[Reporter | None]:
    """A bar on a terminal, a line now and then elsewhere, nothing when quiet."""
    if quiet:
        yield None
        return
    if not is_terminal():
        yield _Lines(run, title)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%  loss {task.fields[loss]}  {task.fields[rate]} images/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console()) as bar:
        task = bar.add_task(plain(title), total=run.images, loss="-", rate="-")

        def report(record: dict[str, Any]) -> None:
            bar.update(
                task, completed=record["images"], loss=f"{record['loss']:.3f}", rate=f"{record['images_per_s']:.0f}"
            )

        yield report


class _Lines:
    def __init__(self, run: Run, title: str) -> None:
        self.run, self.title, self.last = run, title, time.monotonic()

    def __call__(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self.last < LINE_EVERY_SECONDS and record["images"] < self.run.images:
            return
        self.last = now
        left = (self.run.images - record["images"]) / max(record["images_per_s"], 1e-9)
        say(
            f"{self.title}: {record['images']}/{self.run.images} images, loss {record['loss']:.3f}, "
            f"{record['images_per_s']:.0f} images/s, {max(left, 0):.0f} s left"
        )

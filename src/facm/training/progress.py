"""What a person sees while a run trains: loss, images a second, time left."""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from facm.core.terminal import console, is_terminal, plain, say
from facm.runs.config import Run

LINE_EVERY_SECONDS = 10.0
SHOW_EVERY_SECONDS = 0.5
"""Of what is shown in place."""


class Shown(Protocol):
    """What shows how far a run is."""

    def on_step(self, images: int) -> None:
        """The clock after a step."""
        ...

    def on_log(self, record: dict[str, Any]) -> None:
        """A line of the log."""
        ...


class Nothing:
    """Shows nothing."""

    def on_step(self, images: int) -> None: ...

    def on_log(self, record: dict[str, Any]) -> None: ...


@contextlib.contextmanager
def progress(run: Run, title: str, quiet: bool = False) -> Iterator[Shown]:
    """A bar on a terminal or in a notebook, a line now and then elsewhere, nothing when quiet."""
    if quiet:
        yield Nothing()
    elif in_notebook():
        yield (cell := _Cell(run, title))
        cell.draw()
    elif not is_terminal():
        yield _Lines(run, title)
    else:
        with _bar(run, title) as bar:
            yield bar


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, whose cells show what is given to IPython's display."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


@contextlib.contextmanager
def _bar(run: Run, title: str) -> Iterator[Shown]:
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

        class Bar(Nothing):
            def on_step(self, images: int) -> None:
                bar.update(task, completed=images)

            def on_log(self, record: dict[str, Any]) -> None:
                loss, rate = f"{record['loss']:.3f}", f"{record['images_per_s']:.0f}"
                bar.update(task, completed=record["images"], loss=loss, rate=rate)

        yield Bar()


class _Lines(Nothing):
    def __init__(self, run: Run, title: str) -> None:
        self.run, self.title, self.last = run, title, time.monotonic()

    def on_log(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self.last < LINE_EVERY_SECONDS and record["images"] < self.run.images:
            return
        self.last = now
        say(f"{self.title}: {said(record, self.run.images)}")


class _Cell(Nothing):
    """A bar below a notebook's cell, which is replaced as the run goes on."""

    def __init__(self, run: Run, title: str) -> None:
        from IPython.display import HTML, display

        self.run, self.title, self.images, self.text = run, title, 0, "no line of the log yet"
        self.html, self.last = HTML, time.monotonic()
        self.handle = display(HTML(self._content()), display_id=True)

    def on_step(self, images: int) -> None:
        self.images = images
        if time.monotonic() - self.last > SHOW_EVERY_SECONDS:
            self.draw()

    def on_log(self, record: dict[str, Any]) -> None:
        self.text = said(record, self.run.images)

    def draw(self) -> None:
        self.last = time.monotonic()
        self.handle.update(self.html(self._content()))

    def _content(self) -> str:
        bar = (
            f"<progress value={min(self.images, self.run.images)} max={self.run.images} style='width: 20em'></progress>"
        )
        return f"<div>{html.escape(plain(self.title))} {bar} {html.escape(plain(self.text))}</div>"


def said(record: dict[str, Any], images: int) -> str:
    """A line of the log of a run of ``images``, in words."""
    left = (images - record["images"]) / max(record["images_per_s"], 1e-9)
    return (
        f"{record['images']}/{images} images, loss {record['loss']:.3f}, {record['images_per_s']:.0f} images/s, "
        f"{max(left, 0):.0f} s left"
    )

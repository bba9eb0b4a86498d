"""How text reaches the terminal: the only place that prints, and nothing that it prints can act on the terminal."""

from __future__ import annotations

import os
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

HARMFUL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of what moves the cursor, changes colours, reverses or hides text, cannot be encoded, or ends
lines."""


def plain(text: object, keep: str = "") -> str:
    """``text`` on one line, as it will be seen: each control or format character, such as a newline, an escape, a mark
    of writing direction, a space without width or a byte that is no UTF-8, becomes a question mark.

    keep: such characters that stay.
    """
    return "".join("?" if unicodedata.category(c) in HARMFUL and c not in keep else c for c in str(text))


def say(*lines: object) -> None:
    """Print each of ``lines`` as one line, at once. They may quote names of files and runs."""
    for line in lines:
        print(plain(line, keep="\t"), flush=True)


def warn(message: object) -> None:
    """Print a message to standard error. Its further lines are indented, so that no quoted name passes for one of
    ours."""
    print("\n  ".join(plain(line, keep="\t") for line in str(message).split("\n")), file=sys.stderr, flush=True)


def say_text(text: str, styles: Mapping[str, str] = MappingProxyType({})) -> None:
    """Print lines that are laid out already, such as a help text.

    styles: regular expression -> the style that its matches have on a terminal.
    """
    if not styles or not is_terminal():
        print(plain(text, keep="\n\t"), end="", flush=True)
        return
    from rich.text import Text

    styled = Text(text)
    for pattern, style in styles.items():
        styled.highlight_regex(pattern, style)
    console().print(styled, end="", soft_wrap=True)


def warn_text(text: str) -> None:
    """Print to standard error lines that are laid out already."""
    print(plain(text, keep="\n\t"), end="", file=sys.stderr, flush=True)


def warn_of_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, for ``sys.excepthook``: its error may quote names, too."""
    warn_text("".join(traceback.format_exception(kind, error, trace)))


def is_terminal() -> bool:
    """Whether standard output is a terminal whose cursor can be moved."""
    known = os.environ.get("TERM", "dumb" if os.name == "posix" else "console")
    return sys.stdout.isatty() and known.lower() not in ("", "dumb", "unknown")


def console() -> Console:
    """A rich console that prints all text as it is: without markup, and made plain."""
    from rich.console import Console

    made = Console(markup=False, emoji=False, highlight=False)
    made.push_render_hook(_MakePlain())  # type: ignore[arg-type]  # only what it is called by counts
    return made


class _MakePlain:
    """Rich calls it with all that it is to print."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Plain(renderable) for renderable in renderables]


class _Plain:
    """What rich makes of a renderable, with its text made plain and rich's own control codes kept."""

    def __init__(self, renderable: RenderableType) -> None:
        self.renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        from rich.segment import Segment

        for segment in console.render(self.renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(plain(segment.text, keep="\n\t"), segment.style)


def counting(what: str) -> Callable[[int, int], None]:
    """A callback (done, n) that shows how many of ``what`` are done; on a terminal only, where the line can be
    overwritten."""

    def report(done: int, n: int) -> None:
        if sys.stderr.isatty():
            end = "\r\033[K" if done >= n else "\r"
            print(f"{done} of {n} {what}", end=end, file=sys.stderr, flush=True)

    return report

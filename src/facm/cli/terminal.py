"""What is shown while a command works."""

from __future__ import annotations

import sys
from collections.abc import Callable


def counting(what: str) -> Callable[[int, int], None]:
    """A callback (done, n) that says how many of ``what`` are done; on a terminal only, where the line can be written
    over."""

    def report(done: int, n: int) -> None:
        if sys.stderr.isatty():
            end = "\r\033[K" if done >= n else "\r"
            print(f"{done} of {n} {what}", end=end, file=sys.stderr, flush=True)

    return report

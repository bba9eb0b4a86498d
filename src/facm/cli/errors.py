"""Errors that a user can cause, as one message."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Errors that a user can cause are one message; FACM_DEBUG=1 shows where they come from."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (
        ValueError,
        TypeError,
        OSError,
        RuntimeError,
        ArithmeticError,
        LookupError,
        ImportError,
        SyntaxError,
    ) as error:
        if os.environ.get("FACM_DEBUG"):
            raise
        if type(error).__name__ == "PeerError":  # another rank says it
            raise SystemExit(2) from error
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f"rank {rank}: "
        where = traceback.extract_tb(error.__traceback__)[-1]
        if not isinstance(error, ValueError | OSError) and type(error).__module__ == "builtins":
            place = f"{where.filename}:{where.lineno}"
            print(f"{who}unexpected {type(error).__name__} in {place} (all of it with FACM_DEBUG=1)", file=sys.stderr)
        print(f"{who}error: {error}", file=sys.stderr)
        raise SystemExit(2) from error

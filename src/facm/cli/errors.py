"""Errors that a user can cause, as one message in terms of the command line."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Iterator

from facm.cli.terminal import warn

FLAGS = {
    "out": "--out",
    "nfe": "--num-steps",
    "n": "--num-samples",
    "batch_size": "--batch-size",
    "sigma_rel": "--ema",
    "gpus": "--gpus",
    "gpu_memory": "--gpu-memory",
    "fid_stats": "--fid-stats",
}
"""Arguments of the library, which its errors name, and the flags that set them."""
OF_A_RUN = {
    "batch_size": "--run.batch-size",
    "max_nonfinite": "--run.max-nonfinite",
}
"""The same for commands that train."""

_ARGUMENT = re.compile(r"^(?P<name>(?:(?:engine|every|optimizer|ema)\.)?[a-z_]+) = ")


def in_flags(message: str, command: str = "") -> str:
    """A library's message, which names an argument, with the flag that sets it where that has another name."""
    found = _ARGUMENT.match(message)
    if found is None:
        return message
    name = found["name"]
    flags = FLAGS | (OF_A_RUN if command in ("train", "plan", "resume") else {})
    prefix, dot, field = name.partition(".")
    flag = flags.get(name)
    if dot:
        flag = f"--{'' if prefix == 'engine' else 'run.'}{prefix}.{field.replace('_', '-')}"
    return message if flag is None else f"{flag} {message[found.end() :]}"


@contextlib.contextmanager
def readable_errors(command: str = "") -> Iterator[None]:
    """Errors that a user can cause are one message; FACM_DEBUG=1 shows where they come from."""
    try:
        yield
    except BrokenPipeError:  # not an error of the command
        raise
    except KeyboardInterrupt:
        warn("interrupted")
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
        if type(error).__name__ == "PeerError":  # another rank prints it
            raise SystemExit(2) from error
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f"rank {rank}: "
        where = traceback.extract_tb(error.__traceback__)[-1]
        if not isinstance(error, ValueError | OSError) and type(error).__module__ == "builtins":
            place = f"{where.filename}:{where.lineno}"
            warn(f"{who}unexpected {type(error).__name__} in {place} (all of it with FACM_DEBUG=1)")
        warn(f"{who}error: {in_flags(str(error), command)}")
        raise SystemExit(2) from error

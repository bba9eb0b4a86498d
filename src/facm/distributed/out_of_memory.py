"""Out of memory: what would help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class OutOfMemory(RuntimeError):
    """The device has not enough memory for this run."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Errors of the allocators, with the engine's options that save memory."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not (isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate" in text):
            raise
        raise OutOfMemory(
            f"out of memory: {text.splitlines()[0]}. What helps, in this order: a larger --engine.accumulate (smaller "
            "micro-batches), --engine.checkpointing, --engine.parallel fsdp on several ranks, --engine.cpu-offload "
            "with it. 'facm plan' tells what a run needs before it starts"
        ) from error

"""The error for too little memory, with advice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class OutOfMemory(RuntimeError):
    """The device has not enough memory for this run."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Replace errors of the allocators by one that names the engine's options that save memory."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not (isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate" in text):
            raise
        raise OutOfMemory(
            f"out of memory: {text.splitlines()[0]}. What helps, in this order: a larger engine.accumulate (smaller "
            "micro-batches), engine.checkpointing = True, engine.parallel = 'fsdp' on several ranks, and with it "
            "engine.cpu_offload = True. 'facm plan' predicts what a run needs before it starts"
        ) from error

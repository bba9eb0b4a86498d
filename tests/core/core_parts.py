"""What tests of all packages share: generators with a seed, double-precision normals, and tensors of several types."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from facm.core.claims import held

TENSORS = {"a/weight": torch.arange(12.0).reshape(3, 4), "a/count": torch.tensor(3), "b": torch.zeros(2).bfloat16()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@contextlib.contextmanager
def beside(function: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """``function(ready)`` in another process, which has called ``ready`` when the context begins, and ends with it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            function(lambda: os.write(writing, b".") and None)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"."
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


@contextlib.contextmanager
def held_elsewhere(folder: Path) -> Iterator[None]:
    """Another process holds the folder."""

    def hold(ready: Callable[[], None]) -> None:
        with held(folder):
            ready()
            signal.pause()

    with beside(hold):
        yield

"""Randomness is an argument: every seed is a function of what it is for."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


def derive(*parts: int) -> int:
    """One 63-bit seed from non-negative integers, e.g. (seed, images seen, rank): close parts, unrelated seeds."""
    if any(part < 0 for part in parts):
        raise ValueError(f"seed parts = {parts}, expected non-negative integers")
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def global_random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The global generators: this package draws from none of them, but a user's network or data may."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    tensors |= {"python": torch.tensor(internal, dtype=torch.int64)}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors, {"python": [version, gauss], "numpy": [name, int(position), int(has_gauss), float(cached)]}


@contextlib.contextmanager
def borrowed_generators(seed: int | None = None) -> Iterator[None]:
    """Borrow the global generators, seeded if asked for; afterwards they are as they were before."""
    before = global_random_state()
    try:
        if seed is not None:
            seed_generators(seed)
        yield
    finally:
        set_global_random_state(*before)


def seed_generators(seed: int) -> None:
    """The global generators, from here on a function of ``seed``."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def set_global_random_state(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    version, gauss = meta["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    name, position, has_gauss, cached = meta["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])

"""Randomness is an argument: every seed is a function of what it is for."""

from __future__ import annotations

import numpy as np


def derive(*parts: int) -> int:
    """One 63-bit seed from non-negative integers, e.g. (seed, images seen, rank): close parts, unrelated seeds."""
    if any(part < 0 for part in parts):
        raise ValueError(f"seed parts = {parts}, expected non-negative integers")
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)

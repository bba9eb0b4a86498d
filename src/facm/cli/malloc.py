"""Freed memory stays with the process: else, on a CPU, small networks spend almost half of a pass in page faults."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc's malloc not to hand freed blocks back to the system; whether it could be told.

    Measured on 2 cores, forward passes of the digits network: 490 -> 290 microseconds an image.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries than glibc
    if mallopt is None:
        return False
    limit = 2**31 - 1
    return all([mallopt(M_TRIM_THRESHOLD, limit), mallopt(M_MMAP_THRESHOLD, limit), mallopt(M_TOP_PAD, 2**28)])

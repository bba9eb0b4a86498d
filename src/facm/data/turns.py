"""Whose turn it is: batches of several buckets, in proportion to the buckets' sizes, without any state.

The m-th batch of a bucket of n samples is due at time (m + 1/2) / n, and batches come in the order of their times: the
method of Webster and Sainte-Lague, by which seats of a parliament are shared out. So after any number of batches each
bucket has had its share up to one batch or so, however small the bucket is, and which bucket comes when follows from
the batch's number alone.
"""

from __future__ import annotations

import heapq
from fractions import Fraction
from functools import lru_cache


@lru_cache(maxsize=256)
def turn(sizes: tuple[int, ...], batch: int) -> tuple[int, int]:
    """The bucket whose turn batch ``batch`` is, and how many batches of this bucket came before.

    sizes: the number of samples of each bucket, none of them 0.
    """
    buckets, total = len(sizes), sum(sizes)
    # Before this time at most ``batch`` batches are due: the rounding of each bucket adds less than one.
    begin = Fraction(max(0, batch - buckets), total)
    done = [_before(begin, n) for n in sizes]
    ahead = [(Fraction(2 * m + 1, 2 * n), k) for k, (m, n) in enumerate(zip(done, sizes, strict=True))]
    heapq.heapify(ahead)
    for _ in range(batch - sum(done)):
        _, k = ahead[0]
        done[k] += 1
        heapq.heapreplace(ahead, (Fraction(2 * done[k] + 1, 2 * sizes[k]), k))
    k = ahead[0][1]
    return k, done[k]


def _before(time: Fraction, n: int) -> int:
    """How many batches of a bucket of ``n`` samples are due before ``time``: of m with (m + 1/2) / n < time."""
    return max(0, -((1 - 2 * time * n) // 2))

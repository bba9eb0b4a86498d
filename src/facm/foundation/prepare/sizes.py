"""The sizes that pictures are cropped to: one for all, or buckets of about one area and several aspect ratios; and the
numbers of frames that a model makes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MOST_RATIO = 2.0
"""Longest side of a bucket over its shortest."""
STEPS = 16
"""Sides of buckets differ by about this fraction of the area's root, or the model's multiple where that is more."""


@dataclass(frozen=True)
class Plan:
    """Which samples have which size.

    sizes: (height, width) in pixels of each bucket.
    order: number of the source's sample at each place; the samples of a bucket follow each other.
    counts: number of samples of each bucket.
    enlarged: number of pictures that are smaller than their bucket.
    """

    sizes: tuple[tuple[int, int], ...]
    order: tuple[int, ...]
    counts: tuple[int, ...]
    enlarged: int = 0


def one_size(n: int, height: int, width: int, multiple: int) -> Plan:
    """All samples at one size. Raises ValueError for one that is no multiple."""
    if height % multiple or width % multiple or height < 1 or width < 1:
        raise ValueError(f"size = {height} x {width} (height x width), expected multiples of {multiple} for this model")
    return Plan(((height, width),), tuple(range(n)), (n,))


def check_frames(frames: int, multiple: int, pipeline: str) -> None:
    """Raise ValueError for a number of frames that a model does not make: 1 + a multiple of ``multiple``, or 1 alone
    where that is 0."""
    if frames > 1 and not multiple:
        raise ValueError(f"frames = {frames} with a {pipeline}, which makes pictures; expected 1")
    if frames < 1 or (frames > 1 and (frames - 1) % multiple):
        near = [1 + max(1, (max(frames, 1) - 1) // multiple + k) * multiple for k in (0, 1)]
        raise ValueError(
            f"frames = {frames}, expected 1 + a multiple of {multiple} for a {pipeline}, such as "
            f"{' or '.join(map(str, dict.fromkeys(near)))}"
        )


def same_size(sizes: Sequence[tuple[int, int]], multiple: int) -> Plan:
    """Pictures at the size that all of them have.

    sizes: (height, width) of each picture. Raises ValueError where they have several sizes, or one that is no multiple.
    """
    found = Counter(sizes)
    if len(found) > 1:
        listed = ", ".join(f"{h} x {w} ({n})" for (h, w), n in found.most_common(3))
        raise ValueError(
            f"the pictures have {len(found)} sizes, such as {listed} (height x width); expected buckets = True for "
            "sizes of about one area, or size, to which all are cropped"
        )
    return one_size(len(sizes), *sizes[0], multiple)


def in_buckets(sizes: Sequence[tuple[int, int]], side: int, multiple: int) -> Plan:
    """Each picture in the bucket whose aspect ratio is nearest to its own; buckets without any are left out, and that
    with most samples comes first.

    sizes: (height, width) of each picture. side: root of the buckets' area in pixels.
    """
    offered = buckets(side, multiple)
    ratios = [math.log(height / width) for height, width in offered]
    chosen = []
    for height, width in sizes:
        ratio = math.log(height / width)
        chosen.append(min(range(len(offered)), key=lambda k: (abs(ratios[k] - ratio), k)))
    counts = Counter(chosen)
    used = sorted(counts, key=lambda k: (-counts[k], offered[k]))
    order = tuple(i for k in used for i, place in enumerate(chosen) if place == k)
    enlarged = sum(h < offered[k][0] or w < offered[k][1] for (h, w), k in zip(sizes, chosen, strict=True))
    return Plan(tuple(offered[k] for k in used), order, tuple(counts[k] for k in used), enlarged)


def buckets(side: int, multiple: int) -> list[tuple[int, int]]:
    """(height, width) of all buckets, multiples of ``multiple`` whose area is about ``side`` squared, the square among
    them. Raises ValueError where there is none."""
    if side < multiple:
        raise ValueError(f"size = {side}, expected at least {multiple}, of which this model's sizes are multiples")
    step = max(multiple, round(side / STEPS / multiple) * multiple)
    middle = round(side / multiple) * multiple
    found = {(middle, middle)}
    for height in range(middle % step or step, int(side * MOST_RATIO) + step, step):
        width = max(multiple, round(side**2 / height / multiple) * multiple)
        if max(height, width) <= MOST_RATIO * min(height, width):
            found |= {(height, width), (width, height)}
    return sorted(found)

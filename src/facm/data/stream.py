"""A stream of batches indexed by images seen. Any position can be read, so that resuming needs no saved state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from facm.core.types import Batch, Dataset, SaysWhyEmpty
from facm.data.checked import buckets_of, check_at_least, name_of, read_checked
from facm.data.turns import turn


@dataclass(frozen=True, eq=False)
class Stream:
    """Endless shuffled batches, a pure function of (seed, images seen).

    Position p of the stream is place p % len(dataset) of epoch p // len(dataset); every epoch has its own permutation,
    so that each sample appears exactly once per epoch and batches continue over the end of an epoch. Where
    ``dataset.flip`` is true, each position is mirrored left to right with probability 1/2: by the data set where it
    offers ``read_mirrored(indices, mirrored)``, since the latent of a mirrored image is not the mirrored latent, and
    here otherwise. Order and mirroring do not depend on batch size or ranks.

    Where the data set has several buckets, samples of different shapes, each global batch is of one of them: every
    bucket is such a stream of its own, and they take turns in proportion to their sizes (:mod:`facm.data.turns`). Each
    sample then appears exactly once in each pass through its bucket; the passes of different buckets end at different
    times, and a pass may end inside a batch.

    dataset: The opened data set.
    seed: Seed of order and mirroring, 0 or more.
    batch_size: Size of the global batch, which is split into ``parts`` times ``ranks`` equal contiguous slices.
    rank: Which slice of each part this stream reads.
    ranks: Number of slices in a part.
    parts: Parts of the batch, one for each micro-batch: what all ranks work on at the same time is contiguous, so that
        sorted times (:class:`facm.flow.Sorted`) are neighbours there, too.
    Raises ValueError for a batch size that does not divide by ``ranks`` times ``parts``, a rank outside [0, ranks), a
    negative seed, an empty data set, or ``flip`` without images (C, H, W)."""

    dataset: Dataset
    seed: int
    batch_size: int
    rank: int = 0
    ranks: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        check_at_least("Stream", "seed", self.seed, 0)
        check_at_least("Stream", "batch_size", self.batch_size, 1)
        check_at_least("Stream", "ranks", self.ranks, 1)
        check_at_least("Stream", "parts", self.parts, 1)
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"Stream: rank = {self.rank}, expected one within [0, {self.ranks})")
        if self.batch_size % (self.ranks * self.parts):
            times = "" if self.parts == 1 else f" times parts = {self.parts}"
            raise ValueError(
                f"Stream: batch_size = {self.batch_size} (global), expected a multiple of ranks = {self.ranks}{times}"
            )
        if len(self.dataset) == 0 and isinstance(self.dataset, SaysWhyEmpty):
            raise ValueError(self.dataset.why_empty)
        if len(self.dataset) == 0:
            raise ValueError(f"Stream: {name_of(self.dataset)} is empty, expected at least one sample")
        if self.dataset.flip and len(self.dataset.shape) != 3:
            raise ValueError(
                f"Stream: {name_of(self.dataset)} has flip = True and shape {self.dataset.shape}, expected (C, H, W)"
            )

    @property
    def starts(self) -> tuple[int, ...]:
        """Where this rank's slice of each part begins within the global batch."""
        size = self.batch_size // (self.ranks * self.parts)
        return tuple((part * self.ranks + self.rank) * size for part in range(self.parts))

    def at(self, images_seen: int) -> Batch:
        """This rank's slices (batch_size / ranks, ...) of the global batch that starts at position ``images_seen``,
        one part after the other.

        Raises ValueError for a negative position, one that no batch starts at where there are buckets, or bad samples
        (see :func:`read_checked`)."""
        check_at_least("Stream.at", "images_seen", images_seen, 0)
        indices, mirrored = self._drawn(images_seen)
        if self.dataset.flip and hasattr(self.dataset, "read_mirrored"):
            return read_checked(self.dataset, indices, mirrored)
        batch = read_checked(self.dataset, indices)
        if not self.dataset.flip:
            return batch
        x_1 = batch.x_1.numpy().copy()  # a data set may return views of its own memory
        x_1[mirrored] = x_1[mirrored][..., ::-1]
        return Batch(torch.from_numpy(x_1), batch.cond)

    def _drawn(self, images_seen: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample indices and mirror flags of this rank's slices, each (batch_size / ranks,)."""
        buckets = buckets_of(self.dataset)
        if len(buckets) < 2:
            return self._slices(len(self.dataset), images_seen)
        batch, rest = divmod(int(images_seen), self.batch_size)
        if rest:
            raise ValueError(
                f"Stream.at: images_seen = {images_seen}, expected a multiple of batch_size = {self.batch_size}: "
                f"{name_of(self.dataset)} has {len(buckets)} buckets, and a batch is of one of them"
            )
        k, number = turn(tuple(map(len, buckets)), batch)
        places, mirrored = self._slices(len(buckets[k]), number * self.batch_size, (k,))
        return buckets[k][places], mirrored

    def _slices(self, n: int, start: int, bucket: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Of the global batch that starts at position ``start`` of a stream of ``n`` samples."""
        size = self.batch_size // (self.ranks * self.parts)
        found = [_places(n, self.seed, start + here, size, bucket) for here in self.starts]
        return np.concatenate([places for places, _ in found]), np.concatenate([flags for _, flags in found])


def _places(n: int, seed: int, start: int, count: int, bucket: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Sample indices (count,) and mirror flags (count,) of the positions from start to start + count - 1."""
    indices, mirrored = np.empty(count, np.int64), np.empty(count, bool)
    done = 0
    while done < count:
        epoch, place = divmod(int(start) + done, n)
        order, flags = _epoch(n, seed, epoch, bucket)
        here = slice(done, min(count, done + n - place))
        there = slice(place, place + here.stop - done)
        indices[here], mirrored[here] = order[there], flags[there]
        done = here.stop
    return indices, mirrored


@lru_cache(maxsize=64)  # two epochs of each bucket, where there are some
def _epoch(n: int, seed: int, epoch: int, bucket: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The order (n,) of the samples in one epoch, and which of its places (n,) are mirrored.

    bucket: the number of the bucket of which these are the samples; empty without buckets."""
    # Generator.permutation may change between versions of numpy; only the raw bits are the same in all of them.
    source = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, *bucket)))
    order = np.argsort(source.random_raw(n), kind="stable")
    mirrored = source.random_raw(n) >= np.uint64(1 << 63)
    order.flags.writeable = mirrored.flags.writeable = False  # the cache shares them
    return order, mirrored

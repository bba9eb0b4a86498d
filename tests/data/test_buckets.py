"""Data sets with samples of several shapes: one shape a batch, each sample equally often, whatever reads them."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from facm.core.types import Batch
from facm.data import Stream, read_checked
from facm.data.checked import first_indices
from facm.data.turns import turn


class Shapes:
    """Sample i is all i, in a shape that tells its bucket."""

    num_classes = None
    name = "Shapes"

    def __init__(self, *sizes: int, flip: bool = False):
        self.flip, self.shape = flip, (1, 2, 2)
        ends = np.cumsum([0, *sizes])
        self.n, self.buckets = sum(sizes), tuple(np.arange(a, b) for a, b in pairwise(ends))

    def __len__(self) -> int:
        return self.n

    def bucket_of(self, index: int) -> int:
        return next(k for k, bucket in enumerate(self.buckets) if index in bucket)

    def bucket_shape(self, index: int) -> tuple[int, ...]:
        return (1, 2, 2 + self.bucket_of(index) if self.buckets else 2)

    def read(self, indices: np.ndarray) -> Batch:
        shape = self.bucket_shape(int(indices[0]))
        return Batch(torch.from_numpy(indices.astype(np.float32) / 100).reshape(-1, 1, 1, 1).repeat(1, *shape))


def drawn(batch: Batch) -> list[int]:
    return [round(float(x) * 100) for x in batch.x_1[:, 0, 0, 0]]


def test_each_batch_is_of_one_bucket_and_each_sample_comes_equally_often() -> None:
    data = Shapes(11, 5, 2)
    stream = Stream(data, seed=3, batch_size=4)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for k in range(18):  # 18 batches of 4 are 4 epochs of 18 samples
        batch = stream.at(4 * k)
        indices = drawn(batch)
        [bucket] = {data.bucket_of(i) for i in indices}
        assert batch.x_1.shape == (4, 1, 2, 2 + bucket)
        seen[bucket] += indices
    assert [len(found) for found in seen.values()] == [44, 20, 8]
    for k, found in seen.items():
        passes = np.array(found).reshape(4, -1)
        assert (np.sort(passes, 1) == data.buckets[k]).all()  # once in each pass
    assert len({tuple(part) for part in np.array(seen[0]).reshape(4, -1)}) == 4  # shuffled anew


def test_ranks_share_a_batch_and_any_position_can_be_read() -> None:
    data = Shapes(11, 5, 2)
    whole = Stream(data, seed=1, batch_size=4)
    for position in (400, 0, 36, 4):
        parts = [Stream(data, 1, 4, rank, 2).at(position) for rank in range(2)]
        assert [index for part in parts for index in drawn(part)] == drawn(whole.at(position))
    assert drawn(whole.at(36)) == drawn(Stream(data, seed=1, batch_size=4).at(36))
    assert [drawn(whole.at(4 * k)) for k in range(9)] != [drawn(Stream(data, 2, 4).at(4 * k)) for k in range(9)]
    with pytest.raises(ValueError, match="images_seen = 6, expected a multiple of batch_size = 4: Shapes has 3"):
        whole.at(6)


def test_one_bucket_gives_the_numbers_of_none() -> None:
    one, none = Shapes(11), Shapes(11)
    none.buckets = ()
    for position in range(0, 50, 4):
        assert drawn(Stream(one, 5, 4).at(position)) == drawn(Stream(none, 5, 4).at(position))
    assert Stream(one, 5, 4).at(6).x_1.shape == (4, 1, 2, 2)


def test_mirroring_within_a_bucket() -> None:
    class Sided(Shapes):
        def read(self, indices: np.ndarray) -> Batch:
            x = super().read(indices).x_1.clone()
            x[..., -1] *= -1
            return Batch(x)

    stream = Stream(Sided(40, 40, flip=True), seed=0, batch_size=8)
    signs = torch.cat([stream.at(8 * k).x_1[:, 0, 0, 0] < 0 for k in range(10)])
    assert 20 < int(signs.sum()) < 60


@pytest.mark.parametrize("sizes", [(1,), (3, 3, 3), (1000, 1), (7, 90, 2, 500, 31)])
def test_turns_are_in_proportion(sizes: tuple[int, ...]) -> None:
    counts = [0] * len(sizes)
    for batch in range(2 * sum(sizes)):
        k, before = turn(sizes, batch)
        assert before == counts[k]
        counts[k] += 1
        shares = [(batch + 1) * n / sum(sizes) for n in sizes]
        assert max(abs(have - due) for have, due in zip(counts, shares, strict=True)) < 2
    assert tuple(counts) == tuple(2 * n for n in sizes)
    assert turn(sizes, 10**12)[1] == pytest.approx(10**12 * sizes[turn(sizes, 10**12)[0]] / sum(sizes), abs=2)


def test_reading_is_checked_against_the_shape_of_the_bucket() -> None:
    data = Shapes(4, 4)
    assert read_checked(data, np.array([5, 7])).x_1.shape == (2, 1, 2, 3)
    assert first_indices(data, 6).tolist() == [0, 1, 2, 3]
    data.bucket_shape = lambda index: (1, 2, 2)  # type: ignore[method-assign]
    read = Shapes(4, 4).read
    data.read = read  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"x_1 is \(1, 1, 2, 3\) .*expected \(1, 1, 2, 2\)"):
        read_checked(data, np.array([5]))

"""Streams: exactly once per epoch, seekable, independent of batch size and ranks, and what is refused."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from facm.core.types import Batch
from facm.data import InMemory, Stream, read_checked


class Counting:
    """A user's own data set, with nothing but the protocol: sample i is all i in its left half, -i in its right."""

    num_classes = None

    def __init__(self, n: int, flip: bool = False):
        self.n, self.flip, self.shape = n, flip, (2, 2, 4)

    def __len__(self) -> int:
        return self.n

    def read(self, indices: np.ndarray) -> Batch:
        assert indices.dtype == np.int64
        x = torch.from_numpy(indices + 1.0).float().reshape(-1, 1, 1, 1).repeat(1, 2, 2, 4)
        x[..., 2:] *= -1
        return Batch(x)


def drawn(batch: Batch) -> tuple[list[int], list[bool]]:
    """Indices and mirror flags that a batch of a ``Counting`` shows."""
    corner = batch.x_1[:, 0, 0, 0]
    assert torch.equal(batch.x_1[..., :2], corner.reshape(-1, 1, 1, 1).expand(-1, 2, 2, 2))
    assert torch.equal(batch.x_1[..., 2:], -batch.x_1[..., :2])
    return [int(c) - 1 for c in corner.abs()], (corner < 0).tolist()


def draws(stream: Stream, start: int, stop: int) -> tuple[list[int], list[bool]]:
    indices, flags = [], []
    for position in range(start, stop, stream.batch_size):
        i, f = drawn(stream.at(position))
        indices += i
        flags += f
    return indices, flags


@pytest.mark.parametrize(("n", "batch_size"), [(10, 5), (10, 4), (10, 7), (3, 8), (1, 3)])
def test_every_sample_exactly_once_per_epoch(n: int, batch_size: int) -> None:
    indices, _ = draws(Stream(Counting(n), seed=3, batch_size=batch_size), 0, 6 * n * batch_size)
    epochs = np.array(indices).reshape(-1, n)
    assert (np.sort(epochs, 1) == np.arange(n)).all()
    if n == 10:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # reshuffled each time


def test_any_position_equals_reading_up_to_it() -> None:
    one_by_one, flags = draws(Stream(Counting(11, flip=True), seed=1, batch_size=1), 0, 60)
    for start in (47, 0, 8, 23, 9, 1):  # crossing epochs, in no order
        assert drawn(Stream(Counting(11, flip=True), seed=1, batch_size=13).at(start)) == (
            one_by_one[start : start + 13],
            flags[start : start + 13],
        )


def test_batch_size_and_ranks_do_not_matter() -> None:
    data = Counting(11, flip=True)
    expected = draws(Stream(data, seed=5, batch_size=1), 0, 72)
    assert draws(Stream(data, seed=5, batch_size=12), 0, 72) == expected
    for ranks in (2, 3, 12):
        streams = [Stream(data, seed=5, batch_size=12, rank=rank, ranks=ranks) for rank in range(ranks)]
        for position in range(0, 72, 12):
            parts = [stream.at(position).x_1 for stream in streams]
            assert all(len(part) == 12 // ranks for part in parts)
            assert torch.equal(torch.cat(parts), Stream(data, seed=5, batch_size=12).at(position).x_1)


def test_seeds_differ_and_repeat() -> None:
    data = Counting(50, flip=True)
    first = drawn(Stream(data, seed=0, batch_size=50).at(0))
    assert first == drawn(Stream(data, seed=0, batch_size=50).at(0))
    other = drawn(Stream(data, seed=1, batch_size=50).at(0))
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_the_order_never_changes_between_versions() -> None:
    """A resumed run must go on with the same samples: this order is part of what a checkpoint means."""
    indices, flags = drawn(Stream(Counting(8, flip=True), seed=0, batch_size=16).at(0))
    assert indices == [1, 4, 5, 6, 2, 0, 3, 7, 7, 6, 2, 3, 1, 0, 4, 5]
    assert [int(flag) for flag in flags] == [0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_flips_are_per_position_and_fair() -> None:
    indices, flags = draws(Stream(Counting(100, flip=True), seed=0, batch_size=100), 0, 4000)
    assert abs(sum(flags) - 2000) < 4 * 4000**0.5 / 2
    per_index = np.zeros(100)
    np.add.at(per_index, indices, flags)
    assert ((per_index > 0) & (per_index < 40)).all()  # each sample is seen both ways
    by_epoch = np.array(flags).reshape(40, 100)
    assert len({tuple(row) for row in by_epoch}) == 40
    assert not any(draws(Stream(Counting(100), seed=0, batch_size=100), 0, 4000)[1])


def test_flipping_leaves_the_data_set_alone() -> None:
    images = torch.arange(8.0).reshape(2, 1, 1, 4)

    class View(Counting):
        def read(self, indices: np.ndarray) -> Batch:
            return Batch(images)

    data = View(2, flip=True)
    data.shape = (1, 1, 4)
    for position in range(20):
        Stream(data, seed=0, batch_size=2).at(position)
    assert torch.equal(images, torch.arange(8.0).reshape(2, 1, 1, 4))


def test_a_data_set_that_reads_mirrored_samples_gets_the_flags_instead() -> None:
    class Both(Counting):
        """Mirrored samples are 1000 higher."""

        def read_mirrored(self, indices: np.ndarray, mirrored: np.ndarray) -> Batch:
            assert mirrored.dtype == bool
            return Batch(self.read(indices).x_1 + 1000 * torch.from_numpy(mirrored).float().reshape(-1, 1, 1, 1))

    indices, flags = drawn(Stream(Counting(8, flip=True), seed=0, batch_size=16).at(0))
    x = Stream(Both(8, flip=True), seed=0, batch_size=16).at(0).x_1
    assert x[:, 0, 0, 0].tolist() == [i + 1 + 1000 * flag for i, flag in zip(indices, flags, strict=True)]
    assert x[:, 0, 0, 3].tolist() == [-(i + 1) + 1000 * flag for i, flag in zip(indices, flags, strict=True)]
    plain = Stream(Both(8), seed=0, batch_size=16).at(0).x_1  # flip is False: not asked
    assert torch.equal(plain, Stream(Counting(8), seed=0, batch_size=16).at(0).x_1)
    data = Both(8, flip=True)
    data.shape = (2,)
    with pytest.raises(ValueError, match=r"flip = True and shape \(2,\)"):
        Stream(data, seed=0, batch_size=4)


def test_a_data_set_may_say_where_a_bad_sample_lies() -> None:
    class Placed(InMemory):
        def place(self, index: int) -> str:
            return f"file {index // 2}"

    images, labels = np.zeros((6, 2), np.float32), np.array([0, 1, 2, 3, 1, 1])
    images[5, 1] = np.inf
    with pytest.raises(ValueError, match=r"mine: sample 5 \(file 2\) has non-finite values in x_1"):
        read_checked(Placed(images, labels, 4, name="mine"), np.array([0, 5]))
    with pytest.raises(ValueError, match=r"mine: sample 3 \(file 1\) has label 3, expected one within \[0, 3\)"):
        read_checked(Placed(images, labels, 3, name="mine"), np.array([0, 3]))


def test_labels_stay_with_their_images() -> None:
    labels = np.arange(20) % 7
    data = InMemory(np.arange(20, dtype=np.float32)[:, None], labels, 7)
    batch = Stream(data, seed=0, batch_size=50).at(13)
    assert batch.cond is not None
    assert batch.cond.dtype == torch.int64
    assert torch.equal(batch.cond, batch.x_1[:, 0].long() % 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 10, "ranks": 4}, "batch_size = 10 .*multiple of ranks = 4"),
        ({"batch_size": 0}, "batch_size = 0, expected at least 1"),
        ({"rank": 2, "ranks": 2}, r"rank = 2, expected one within \[0, 2\)"),
        ({"seed": -1}, "seed = -1, expected at least 0"),
        ({"dataset": Counting(0)}, "Counting is empty"),
        ({"dataset": InMemory(np.zeros((4, 2), np.float32), flip=True)}, r"flip = True and shape \(2,\)"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stream(**{"dataset": Counting(5), "seed": 0, "batch_size": 4} | options)


def test_negative_position() -> None:
    with pytest.raises(ValueError, match="images_seen = -4"):
        Stream(Counting(5), seed=0, batch_size=4).at(-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_named(value: float) -> None:
    images = np.zeros((6, 1, 2, 2), np.float32)
    images[4, 0, 1, 1] = value
    with pytest.raises(ValueError, match="mine: sample 4 has non-finite"):
        Stream(InMemory(images, name="mine"), seed=0, batch_size=6).at(0)
    assert read_checked(InMemory(images), np.array([3, 5])).x_1.isfinite().all()


@pytest.mark.parametrize(("scale", "shift"), [(255.0, 0.0), (16.0, 0.0), (-255.0, 0.0), (2.0, 100.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_another_scale_are_named_with_their_range(channels: int, scale: float, shift: float) -> None:
    images = (np.linspace(0, 1, 6 * channels * 4).reshape(6, channels, 2, 2) * scale + shift).astype(np.float32)
    said = rf"sample \d is of another scale: .*\[{images.min():g}, {images.max():g}\], expected images in \[-1, 1\]"
    with pytest.raises(ValueError, match=rf"mine: {said}"):
        Stream(InMemory(images, name="mine"), seed=0, batch_size=6).at(0)


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 2)])
def test_standardised_images_and_noise_are_of_the_right_scale(shape: tuple[int, ...]) -> None:
    images = np.full((4, *shape), -9.9, np.float32)
    assert read_checked(InMemory(images), np.arange(4)).x_1.min() == np.float32(-9.9)


@pytest.mark.parametrize("shape", [(2,), (4, 2, 2), (4, 2, 2, 2)])
def test_what_is_no_image_may_be_of_any_scale(shape: tuple[int, ...]) -> None:
    """Points, latents and signals."""
    assert read_checked(InMemory(np.full((4, *shape), 300.0, np.float32)), np.arange(4)).x_1.max() == 300


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_labels_out_of_range_are_named(label: int) -> None:
    labels = np.array([0, 1, label, 2])
    data = InMemory(np.zeros((4, 2), np.float32), labels, 3, name="mine")
    with pytest.raises(ValueError, match=rf"mine: sample 2 has label {label}, expected one within \[0, 3\)"):
        Stream(data, seed=0, batch_size=4).at(0)


@pytest.mark.parametrize(
    ("batch", "num_classes", "message"),
    [
        (Batch(torch.zeros(3, 2)), None, r"x_1 is \(3, 2\).* expected \(4, 2\)"),
        (Batch(torch.zeros(4, 3)), None, r"x_1 is \(4, 3\)"),
        (Batch(torch.zeros(4, 2, dtype=torch.float64)), None, "float64"),
        (Batch(torch.zeros(4, 2)), 3, "cond is None"),
        (Batch(torch.zeros(4, 2), torch.zeros(4)), 3, "float32, expected labels"),
        (Batch(torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.int64)), 3, r"cond is \(4, 1\)"),
        (Batch(torch.zeros(4, 2), torch.zeros(3, 5)), None, r"cond has shape \(3, 5\)"),
        (Batch(torch.zeros(4, 2, device="meta")), None, "on meta, expected .* on cpu"),
        ((torch.zeros(4, 2), None), None, "what read returned is of type tuple, expected a Batch"),
        (Batch(np.zeros((4, 2), np.float32)), None, "x_1 is of type ndarray, expected a tensor"),
        (Batch(None), None, "x_1 is of type NoneType, expected a tensor"),
        (Batch(torch.zeros(4, 2, requires_grad=True)), None, "x_1 requires a gradient"),
        (Batch(torch.zeros(4, 2).to_sparse()), None, "x_1 is sparse on cpu, expected plain numbers"),
        (Batch(torch.zeros(4, 2), ["a", "b", "c", "d"]), None, "cond is of type list, expected a tensor, several by"),
        (Batch(torch.zeros(4, 2), np.zeros(4)), None, "cond is of type ndarray, expected a tensor"),
        (Batch(torch.zeros(4, 2), 3), None, "cond is of type int, expected a tensor"),
        (Batch(torch.zeros(4, 2), {"prompt": ["a"] * 4}), None, r"cond\['prompt'\] is of type list, expected a tensor"),
        (Batch(torch.zeros(4, 2), {0: {}}), None, r"cond\[0\] is of type dict, expected a tensor"),
        (Batch(torch.zeros(4, 2), torch.zeros(4, requires_grad=True)), None, "cond requires a gradient"),
        (Batch(torch.zeros(4, 2), {"a": torch.zeros(4, device="meta")}), None, r"cond\['a'\] is meta on meta"),
        (
            Batch(torch.zeros(4, 2), torch.full((4, 5), torch.nan).to(torch.float8_e4m3fn)),
            None,
            "non-finite values in cond",
        ),
        (
            Batch(torch.zeros(4, 2), torch.full((4, 5), torch.nan, dtype=torch.bfloat16)),
            None,
            "non-finite values in cond",
        ),
        (Batch(torch.zeros(4, 2), torch.full((4, 5), torch.nan)), None, "non-finite values in cond"),
    ],
)
def test_what_a_data_set_returns_is_checked(batch: Any, num_classes: int | None, message: str) -> None:
    class Wrong(Counting):
        def read(self, indices: np.ndarray) -> Batch:
            return batch

    data = Wrong(4)
    data.shape, data.num_classes = (2,), num_classes
    with pytest.raises(ValueError, match=f"Wrong: .*{message}"):
        Stream(data, seed=0, batch_size=4).at(0)


def test_in_memory_reads_in_order_and_scales_bytes() -> None:
    data = InMemory(np.array([[[[0]]], [[[255]]], [[[51]]]], np.uint8), np.array([2, 0, 1], np.uint8), 3)
    batch = data.read(np.array([2, 0, 1, 1]))
    assert torch.equal(batch.x_1.flatten(), torch.tensor([51 / 127.5 - 1, -1, 1, 1], dtype=torch.float32))
    assert batch.cond is not None
    assert batch.cond.tolist() == [1, 2, 0, 0]
    for outside in (-1, 3):
        with pytest.raises(IndexError, match=f"{outside}"):
            data.read(np.array([0, outside]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((4, 2))}, "float64"),
        ({"images": np.zeros(4, np.float32)}, r"\(4,\)"),
        ({"labels": np.zeros(3, int), "num_classes": 2}, "one per image"),
        ({"labels": np.zeros(4), "num_classes": 2}, "expected integers"),
        ({"labels": np.zeros(4, int)}, "both or neither"),
        ({"num_classes": 2}, "both or neither"),
    ],
)
def test_in_memory_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InMemory(**{"images": np.zeros((4, 2), np.float32)} | arguments)


@pytest.mark.slow
def test_importing_is_cheap() -> None:
    code = "import facm.data, sys; print([m for m in ('sklearn', 'PIL', 'torchvision') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_all_ranks_work_on_at_the_same_time_is_contiguous() -> None:
    """A part of the batch, a micro-batch of every rank, is a range of it: there sorted times are neighbours."""
    whole = Stream(Counting(11, flip=True), seed=5, batch_size=24).at(48).x_1
    streams = [Stream(Counting(11, flip=True), 5, 24, rank, 2, parts=3) for rank in range(2)]
    assert [stream.starts for stream in streams] == [(0, 8, 16), (4, 12, 20)]
    slices = [stream.at(48).x_1 for stream in streams]
    for part in range(3):
        here = slice(4 * part, 4 * part + 4)
        assert torch.equal(torch.cat([x[here] for x in slices]), whole[8 * part : 8 * part + 8])
    with pytest.raises(
        ValueError, match=r"batch_size = 20 \(global\), expected a multiple of ranks = 2 times parts = 4"
    ):
        Stream(Counting(11), 5, 20, 0, 2, parts=4)

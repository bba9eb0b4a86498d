"""Reading ahead: the same batches with and without workers, errors where they are due, nothing left behind."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from facm.core.types import Batch
from facm.data import InMemory, Stream, batches

WORKERS = pytest.mark.parametrize("workers", [0, 1, 2])


def stream_of(n: int = 10, batch_size: int = 4, **options) -> Stream:
    images = np.arange(6 * n, dtype=np.float32).reshape(n, 2, 1, 3)
    return Stream(InMemory(images, np.arange(n) % 3, 3, flip=True), seed=3, batch_size=batch_size, **options)


def equal(a: Batch, b: Batch) -> bool:
    return torch.equal(a.x_1, b.x_1) and torch.equal(a.cond, b.cond) and (a.start, a.of) == (b.start, b.of)


@WORKERS
@pytest.mark.parametrize("start", [0, 6, 20])
def test_each_batch_is_a_function_of_its_position(workers: int, start: int) -> None:
    stream = stream_of()
    found = list(batches(stream, start, 27, workers))
    assert len(found) == -(-(27 - start) // 4)
    assert all(equal(batch, stream.at(start + 4 * k)) for k, batch in enumerate(found))


@WORKERS
def test_nothing_is_read_where_nothing_is_left(workers: int) -> None:
    assert list(batches(stream_of(), 6, 6, workers)) == []


@WORKERS
def test_ranks_read_their_slices(workers: int) -> None:
    parts = [list(batches(stream_of(rank=rank, ranks=2), 0, 12, workers)) for rank in range(2)]
    for k, (first, second) in enumerate(zip(*parts, strict=True)):
        assert torch.equal(torch.cat([first.x_1, second.x_1]), stream_of().at(4 * k).x_1)


@WORKERS
def test_the_global_generators_stay_as_they_are(workers: int) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert len(list(batches(stream_of(), 0, 12, workers))) == 3
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_a_worker_reads_in_a_process_of_its_own() -> None:
    class Where(InMemory):
        def read(self, indices: np.ndarray) -> Batch:
            return Batch(torch.full((len(indices), 1), float(os.getpid())))

    stream = Stream(Where(np.zeros((5, 1), np.float32)), seed=0, batch_size=2)
    processes = [int(batch.x_1[0]) for batch in batches(stream, 0, 8, workers=1)]
    assert len(set(processes)) == 1
    assert processes[0] != os.getpid()
    assert {int(batch.x_1[0]) for batch in batches(stream, 0, 8)} == {os.getpid()}


class Own(Exception):
    """An error that cannot be pickled: its constructor takes other arguments than its message."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Broken(InMemory):
    """Sample 9 cannot be read."""

    error: Exception = OSError(5, "Input/output error", "picture.png")

    def read(self, indices: np.ndarray) -> Batch:
        if 9 in indices:
            raise self.error
        return super().read(indices)


def broken(error: Exception | None = None) -> tuple[Stream, int]:
    """A stream, and how many batches of it come before the error."""
    images = np.arange(10, dtype=np.float32)[:, None]
    data = Broken(images)
    if error is not None:
        object.__setattr__(data, "error", error)
    order = Stream(InMemory(images), seed=0, batch_size=10).at(0).x_1[:, 0].tolist()
    return Stream(data, seed=0, batch_size=1), order.index(9)


@WORKERS
def test_an_error_is_raised_as_it_was_and_where_its_batch_is_due(workers: int) -> None:
    stream, before = broken()
    assert before > 1
    reading = batches(stream, 0, 10, workers)
    for _ in range(before):
        next(reading)
    with pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error: 'picture.png'$") as caught:
        next(reading)
    assert caught.value.filename == "picture.png"
    assert multiprocessing.active_children() == []
    if workers:
        assert "in read\n    raise self.error" in str(caught.value.__cause__)


@WORKERS
def test_bad_samples_are_named(workers: int) -> None:
    images = np.zeros((3, 2), np.float32)
    images[1, 1] = np.nan
    stream = Stream(InMemory(images, name="mine"), seed=0, batch_size=3)
    with pytest.raises(ValueError, match=r"^mine: sample 1 has non-finite values in x_1$"):
        next(batches(stream, 0, 3, workers))


def test_an_error_that_cannot_travel_keeps_its_words() -> None:
    stream, _ = broken(Own(1, 2))
    with pytest.raises(RuntimeError, match=r"^Own: 1 and 2$"):
        list(batches(stream, 0, 10, workers=1))
    with pytest.raises(Own, match=r"^1 and 2$"):
        list(batches(stream, 0, 10))


@WORKERS
def test_the_end_of_an_iterator_inside_a_data_set_is_an_error(workers: int) -> None:
    stream, _ = broken(StopIteration("exhausted"))
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(batches(stream, 0, 10, workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_closing_early_ends_the_workers(workers: int) -> None:
    reading = batches(stream_of(), 0, 4000, workers)
    next(reading)
    assert len(multiprocessing.active_children()) == workers
    reading.close()
    assert multiprocessing.active_children() == []


def test_workers_outlive_a_signal_to_all_processes_of_a_job() -> None:
    reading = batches(stream_of(), 0, 40, workers=1)
    next(reading)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert len(list(reading)) == 9


@pytest.mark.slow
def test_a_worker_ends_with_its_parent() -> None:
    code = """
import multiprocessing, os, signal
from tests.data.test_loader import batches, stream_of
reading = batches(stream_of(), 0, 4000, workers=1)
next(reading)
print(multiprocessing.active_children()[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    worker = int(result.stdout)
    end = time.monotonic() + 500
    while _runs(worker):
        assert time.monotonic() < end
        time.sleep(0.1)


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batches: workers = -1, expected at least 0"):
        next(batches(stream_of(), 0, 4, workers=-1))


def test_batches_are_pinned_by_their_own_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """What page-locked memory needs is a GPU; that the batch hands on to its tensors is seen without one."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x + 1)
    batch = Batch(torch.zeros(2, 3), torch.tensor([4, 5]), start=2, of=8).pin_memory()
    assert equal(batch, Batch(torch.ones(2, 3), torch.tensor([5, 6]), start=2, of=8))
    assert Batch(torch.zeros(2, 3)).pin_memory().cond is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@WORKERS
def test_batches_are_in_page_locked_memory(workers: int) -> None:
    stream = stream_of()
    for k, batch in enumerate(batches(stream, 0, 12, workers, pin_memory=True)):
        assert batch.x_1.is_pinned()
        assert batch.cond.is_pinned()
        assert equal(batch, stream.at(4 * k))

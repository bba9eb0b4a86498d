"""The batches of a stream one after the other, read ahead by worker processes where that is wanted."""

from __future__ import annotations

import pickle
import signal
import traceback
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as MapDataset

from facm.core.types import Batch
from facm.data.checked import check_at_least
from facm.data.stream import Stream


def batches(
    stream: Stream, start: int, stop: int, workers: int = 0, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """Yield ``stream.at(start)``, ``stream.at(start + batch_size)``, ... for positions below ``stop``.

    Each batch is a function of its position alone, whatever the number of workers and wherever reading starts. The
    global random generators are left as they are. An error in reading is raised where its batch is due, with its own
    type and message. The workers end when the generator is exhausted, closed, or raises.

    start: Images seen before the first batch.
    stop: Images seen at which reading ends.
    workers: Processes that read ahead, two batches each; 0 reads each batch when it is due.
    pin_memory: Put the batches into page-locked memory, from which copies to a GPU are faster. No effect without one.
    Raises ValueError for a negative number of workers.
    """
    check_at_least("batches", "workers", workers, 0)
    loader = DataLoader(
        _Positions(stream),
        batch_size=None,
        sampler=range(start, stop, stream.batch_size),
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory and torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # otherwise the workers' seed would be drawn from the global generator
    )
    items = iter(loader)
    try:
        for item in items:
            if isinstance(item, _Failure):
                if item.cause is not None:
                    raise item.error from item.cause
                raise item.error
            yield item
    finally:
        del items  # what ends the workers, also while an error's traceback keeps this frame alive


class _InWorker(Exception):
    """The text of a traceback in a worker, shown as the cause of the error that came from there."""

    def __str__(self) -> str:
        return f"in the process that reads ahead:\n{self.args[0]}"


@dataclass(frozen=True)
class _Failure:
    """An error in reading a batch, passed on as the batch's value: DataLoader would raise it with another message."""

    error: Exception
    cause: BaseException | None = None


class _Positions(MapDataset[Any]):
    """A stream as a map-style data set, whose items are the batches at positions of the clock."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, position: int) -> Batch | _Failure:
        try:
            return self.stream.at(position)
        except Exception as error:
            if get_worker_info() is None:
                return _Failure(error)
            return _Failure(_portable(error), _InWorker(traceback.format_exc()))


def _portable(error: Exception) -> Exception:
    """``error``, or a RuntimeError of the same text where ``error`` cannot be pickled."""
    try:
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception:  # a class of the user's own can fail in any way
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def _unchanged(item: Any) -> Any:
    return item


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore Ctrl-C and the first SIGTERM, which are often sent to all processes of a job at once.

    The parent then finishes its step, for which it needs its batch, and ends the workers itself.
    """

    def once(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)

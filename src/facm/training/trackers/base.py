"""What a tracker is, and how one that fails is kept from ending a run."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from facm.core.files import write_text
from facm.core.serialize import to_json
from facm.core.terminal import warn
from facm.core.untrusted.door import read_json
from facm.runs.config import Run
from facm.training.callbacks import Callback
from facm.training.loop import Outcome

IDS = "trackers.json"
"""The file in a run's folder that holds, by tracker, the identity that its run goes on under."""
GROUPS = {
    "speed": ("images_per_s", "images_per_s_per_rank", "mfu", "data_wait", "seconds_left"),
    "memory": ("memory_gb", "peak_memory_gb"),
    "optimizer": ("lr", "grad_norm", "skipped"),
    "tangent": ("tangent_rms", "clamped"),
}


class Sink:
    """Where lines of a log go. Any method may raise anything; after that, none is called any more."""

    package: str
    """What has to be installed."""

    def open(self, folder: Path, name: str, identity: str, images: int, config: dict[str, Any]) -> None:
        """Begin, or go on after ``images``, the run called ``name``, which is the one of this identity."""
        raise NotImplementedError

    def log(self, numbers: Mapping[str, float], images: int) -> None:
        raise NotImplementedError

    def picture(self, name: str, file: Path, images: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Guarded(Callback):
    """A tracker that is left alone after its first failure, of which a warning is printed.

    name: its name. sink: where lines go. how: what is recorded besides the run's configuration.
    """

    def __init__(self, name: str, sink: Sink, how: dict[str, Any]) -> None:
        self.name, self.sink, self.how, self.works, self.to_be_closed = name, sink, how, True, False

    def on_begin(self, run: Run, folder: Path, images: int) -> None:
        def begin() -> None:
            config = {"run": to_json(run), **self.how}
            self.sink.open(folder, folder.resolve().name, _identity(folder, self.name), images, config)
            self.to_be_closed = True

        self._try(begin)

    def on_log(self, record: dict[str, Any]) -> None:
        numbers = {
            grouped(key): float(value)
            for key, value in record.items()
            if key != "images" and isinstance(value, int | float) and math.isfinite(value)
        }
        self._try(lambda: self.sink.log(numbers, record["images"]))

    def on_preview(self, images: int, picture: Path) -> None:
        self._try(lambda: self.sink.picture("samples", picture, images))

    def on_end(self, outcome: Outcome) -> None:
        if self.to_be_closed:
            self._try(self.sink.close)

    def _try(self, act: Callable[[], None]) -> None:
        if not self.works:
            return
        try:
            act()
        except ImportError as error:
            self._off(f"its package is not there ({error}): pip install {self.sink.package}")
        except Exception as error:  # of somebody else's program
            self._off(f"{type(error).__name__}: {error}")

    def _off(self, why: str) -> None:
        self.works = False
        warn(f"tracker {self.name}: {why}; training goes on without it, and log.jsonl has everything")


def grouped(key: str) -> str:
    """The name of a number among a tracker's groups: optimizer/lr, and loss/anchor for what is in none."""
    group = next((group for group, keys in GROUPS.items() if key in keys), "loss")
    return f"{group}/{key}"


def _identity(folder: Path, tracker: str) -> str:
    """The identity that a run has with a tracker, made when it is asked for first, and kept in the run's folder."""
    file = folder / IDS
    known = read_json(file, links=False) if file.exists() else {}
    if not isinstance(known, dict):
        known = {}
    if not isinstance(known.get(tracker), str):
        known[tracker] = uuid.uuid4().hex[:12]
        write_text(file, json.dumps(known))
    return str(known[tracker])

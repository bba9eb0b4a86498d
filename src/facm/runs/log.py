"""The run's log: one JSON object a line, each with its clock ``images``."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from facm.core.files import write_text

TIMED = frozenset({"images_per_s", "data_wait", "memory_gb", "peak_memory_gb"})
"""Keys whose values depend on the machine and the moment; all others are the same whenever the run is repeated."""


def append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a kill cut the last line short: it stays alone
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole records; a line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def rewind(path: Path, images: int) -> None:
    """Drop what was logged after ``images``: it will be logged again, the same, by the resumed run."""
    if path.exists():
        kept = [record for record in read(path) if record["images"] <= images]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

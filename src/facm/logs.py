"""The run's log: one JSON object a line, each with its clock ``images``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from facm.checkpoint import write_text


def append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole records; a last line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def rewind(path: Path, images: int) -> None:
    """Drop what was logged after ``images``: it will be logged again, the same, by the resumed run."""
    if path.exists():
        kept = [record for record in read(path) if record["images"] <= images]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

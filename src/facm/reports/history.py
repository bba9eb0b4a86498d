"""A run's folder as a reader sees it who neither trains nor imports the run's parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm.core.untrusted.door import read_json
from facm.runs import log as logs
from facm.runs.folder import RunFolder

MOST_PICTURES = 12


@dataclass(frozen=True)
class History:
    """A run so far.

    path: its folder.
    record: run.json, whose components are not made.
    records: log.jsonl.
    evaluations: evaluations.jsonl.
    sessions: sessions.jsonl.
    pictures: (clock, file) of its sample grids, oldest first.
    environment: environment.json.
    """

    path: Path
    record: dict[str, Any]
    records: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    pictures: list[tuple[int, Path]]
    environment: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def length(self) -> int:
        """Images of the whole run, 0 where run.json does not say it."""
        images = self.record.get("run", {}).get("images", 0)
        return images if isinstance(images, int) else 0

    @property
    def last(self) -> dict[str, Any]:
        """The newest line of the log; empty before the first."""
        return self.records[-1] if self.records else {}

    @property
    def warning(self) -> str:
        """What the run was warned of while it trained; empty where it was not."""
        return next((str(r["warning"]) for r in self.records if r.get("warning")), "")

    @property
    def finished(self) -> bool:
        return bool(self.records) and self.last["images"] >= self.length > 0

    def series(self, key: str) -> list[tuple[float, float]]:
        """(images, value) of a number of the log, finite ones."""
        return [(float(r["images"]), float(r[key])) for r in self.records if is_number(r.get(key))]


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def read_history(path: Path) -> History:
    """The run in the folder ``path``. Raises RunFolderError or ValueError for a folder that holds none."""
    folder = RunFolder(path)
    if not folder.run_json.exists():
        raise ValueError(f"{path} is not a run folder: it has no run.json")
    record = read_json(folder.run_json, links=False)
    if not isinstance(record, dict) or not isinstance(record.get("run"), dict):
        raise ValueError(f"{folder.run_json} does not describe a run")
    environment = read_json(folder.environment_json, links=False) if folder.environment_json.exists() else {}
    records = [r for r in logs.read(folder.log) if is_number(r.get("images"))]
    return History(
        path,
        record,
        records,
        logs.read(folder.evaluations),
        logs.read(folder.sessions),
        _pictures(folder.samples),
        environment if isinstance(environment, dict) else {},
    )


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    """The sample grids of checkpoints; evenly spaced ones, the first and the last among them, where there are many."""
    found = []
    for file in folder.glob("*.png") if folder.is_dir() else ():
        if file.stem.isdigit() and not file.is_symlink() and file.is_file():
            found.append((int(file.stem), file))
    found.sort()
    if len(found) <= MOST_PICTURES:
        return found
    places = {round(k * (len(found) - 1) / (MOST_PICTURES - 1)) for k in range(MOST_PICTURES)}
    return [found[k] for k in sorted(places)]


def flattened(value: Any, prefix: str = "") -> dict[str, str]:
    """Recorded JSON as one line a number, by its path, such as run.optimizer.lr."""
    if isinstance(value, dict):
        found = dict[str, str]()
        for key, item in value.items():
            name = prefix if key == "type" else f"{prefix}.{key}" if prefix else str(key)
            found |= flattened(item, name)
        return found
    return {prefix: value if isinstance(value, str) else json.dumps(value)}

"""The log, line by line."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from facm.core.files import write_text
from facm.runs import log as logs
from tests.core.core_parts import beside


def test_a_log_line_cut_short_is_left_out_and_stays_alone(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"images": 1}\n{"ima')
    assert logs.read(log) == [{"images": 1}]
    logs.append(log, {"images": 2})
    assert logs.read(log) == [{"images": 1}, {"images": 2}]
    logs.rewind(log, 1)
    assert log.read_text() == '{"images": 1}\n'


@pytest.mark.parametrize(
    "line", ["[]", "3", "null", "[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\0" * 100, '{"images": "x"}', "{}"]
)
def test_lines_that_are_no_records_are_left_out(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(f'{line}\n{{"images": 1}}\n')
    assert logs.read(log)[-1] == {"images": 1}
    logs.rewind(log, 1)
    assert log.read_text() == '{"images": 1}\n'


def test_a_log_with_another_name_elsewhere_gets_a_copy_of_its_own(tmp_path: Path) -> None:
    """As in a backup made of hard links, or a folder that somebody else packed."""
    other, log = tmp_path / "other", tmp_path / "log.jsonl"
    logs.append(other, {"images": 1})
    os.link(other, log)
    logs.append(log, {"images": 2})
    assert (logs.read(other), logs.read(log)) == ([{"images": 1}], [{"images": 1}, {"images": 2}])


def test_lines_of_two_processes_stay_whole(tmp_path: Path) -> None:
    """The other one stops in the middle of its line, which is longer than any buffer: the file is its alone."""
    log = tmp_path / "log.jsonl"

    def write_slowly(ready: Callable[[], None]) -> None:
        real = json.dumps

        def pause(record: object) -> str:
            ready()
            signal.pause()
            return real(record)

        json.dumps = pause  # type: ignore[assignment]
        logs.append(log, {"images": 2, "text": "x" * 100_000})

    logs.append(log, {"images": 1})
    with beside(write_slowly), log.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    logs.append(log, {"images": 3})  # the lock ended with its process
    assert [record["images"] for record in logs.read(log)] == [1, 3]


def test_a_line_goes_into_the_file_that_has_the_name_by_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process replaces the file while this one waits for its lock."""
    log, real, taken = tmp_path / "log.jsonl", fcntl.flock, []

    def replaced(handle: int, operation: int) -> None:
        real(handle, operation)
        if not taken:
            write_text(log, '{"images": 1}\n')
        taken.append(handle)

    logs.append(log, {"images": 0})
    monkeypatch.setattr(fcntl, "flock", replaced)
    logs.append(log, {"images": 2})
    assert [record["images"] for record in logs.read(log)] == [1, 2]

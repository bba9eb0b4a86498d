"""One process at a time holds a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from facm.core import claims
from facm.core.claims import LOCK, HeldError, contents, held
from tests.core.core_parts import held_elsewhere


def test_a_folder_is_held_by_one_process_and_free_when_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with held(folder, make=True):
        assert contents(folder) == []
    with held_elsewhere(folder), pytest.raises(HeldError, match=f"{folder} is in use by another process"), held(folder):
        pass
    with held(folder):
        pass


def test_a_folder_that_is_not_there_is_made_only_where_that_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), held(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_the_lock_is_neither_written_nor_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "run").mkdir()
    os.link(other, tmp_path / "run" / LOCK)
    with held(tmp_path / "run"):
        pass
    (tmp_path / "run" / LOCK).unlink()
    (tmp_path / "run" / LOCK).symlink_to(other)
    with pytest.raises(ValueError, match=r"run/.lock is a symbolic link"), held(tmp_path / "run"):
        pass
    assert other.read_text() == "mine"


def test_a_lock_that_its_holder_removed_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder takes the folder away after this process has opened the lock and before it has locked it."""
    folder, real, opened = tmp_path / "run", claims.open_in_place, list[Path]()

    def open_and_lose(path: Path, flags: int) -> int:
        handle = real(path, flags)
        if not opened:
            path.unlink()
            folder.rmdir()
        opened.append(path)
        return handle

    monkeypatch.setattr(claims, "open_in_place", open_and_lose)
    with held(folder, make=True):
        assert len(opened) == 2
        with pytest.raises(HeldError), held(folder):  # it is the lock that others find
            pass

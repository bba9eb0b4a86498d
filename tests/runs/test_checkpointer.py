"""Checkpoints of either kind: a file, or a directory of shards."""

import shutil

import pytest
import torch

from facm.core.files import UMASK
from facm.runs.checkpointer import directory_of, load, remove, save


class Killed(Exception):
    """The process ends here."""


@pytest.fixture
def shards(tmp_path):
    """A directory as a sharded checkpoint is one."""
    path = directory_of(tmp_path / "000000000080.safetensors")
    path.mkdir()
    for name in ("checkpoint.json", "shard-00001-model-00001-of-00001.safetensors"):
        (path / name).write_text("content")
    return path


def test_a_directory_is_removed_under_another_name(shards, monkeypatch):
    """A removal that is cut short leaves no half of a checkpoint under a checkpoint's name."""

    def killed(path, *arguments, **options):
        if path.exists():
            (path / "checkpoint.json").unlink()
            raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        remove(shards)
    assert not shards.exists()
    monkeypatch.undo()
    (left,) = shards.parent.iterdir()
    assert left.name == ".000000000080.removed"
    shards.mkdir()
    remove(shards)  # and what was left goes with the next removal
    assert list(shards.parent.iterdir()) == []


def test_a_file_is_removed_and_nothing_may_be_there(tmp_path):
    file = tmp_path / "000000000080.safetensors"
    remove(file)
    file.touch()
    remove(file)
    assert not file.exists()


def test_whole_tensors_are_a_file_that_others_may_read_as_the_umask_says(tmp_path):
    file = tmp_path / "000000000080.safetensors"
    assert save(file, {"network/w": torch.ones(3)}, {"images": 80}) == file
    assert file.stat().st_mode & 0o777 == 0o666 & ~UMASK
    assert load(file).meta == {"images": 80}

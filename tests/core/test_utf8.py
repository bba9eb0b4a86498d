"""Files whose names are no UTF-8, read by libraries that take no other names."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from facm.core.utf8 import in_utf8

NAMES = [
    "plain.safetensors",
    "Ünï→ø.safetensors",
    os.fsdecode(b"raw\xff.safetensors"),
    os.fsdecode(b"\xc3.safetensors"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_is_read_by_a_name_in_utf8(tmp_path, name):
    path = tmp_path / name
    save_file({"a": torch.arange(3)}, tmp_path / "made")
    (tmp_path / "made").rename(path)
    with in_utf8(path) as spelled:
        assert spelled.isascii() or spelled == str(path)
        assert load_file(spelled)["a"].tolist() == [0, 1, 2]


def test_the_name_is_the_files_own_where_it_can_be(tmp_path):
    with in_utf8(tmp_path / "missing") as spelled:
        assert spelled == str(tmp_path / "missing")


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError), in_utf8(tmp_path / os.fsdecode(b"\xff")):
        pass

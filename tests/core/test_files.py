"""Files that are written whole or not at all."""

import os

import pytest

from facm.core.files import atomically, write_text
from tests.training.run_parts import Crash


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    file = tmp_path / "x.txt"
    write_text(file, "old")

    def fail(partial):
        partial.write_text("half")
        raise Crash

    with pytest.raises(Crash), atomically(file) as partial:
        fail(partial)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]

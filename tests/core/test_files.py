"""Files that are written whole or not at all."""

import os
import subprocess
import sys

import pytest

from facm.core.files import UMASK, atomically, write_text
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


def test_a_file_is_readable_as_the_umask_says_whatever_its_writer_made_it(tmp_path):
    """Some writers, such as safetensors', make files that only their owner may read."""
    file = tmp_path / "x.txt"
    with atomically(file) as partial:
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
    assert file.stat().st_mode & 0o777 == 0o666 & ~UMASK


def test_reading_the_umask_leaves_it_as_it_was():
    """Alone in its process: another module could put it back."""
    code = (
        "import os; before = os.umask(0o027); os.umask(before); os.umask(0o027); import facm.core.files; "
        "print(os.umask(0) == 0o027)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"

"""Files that are written whole or not at all, and those that are written in place."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from facm.core.files import PARTIAL, UMASK, TakenError, atomically, folder_atomically, open_in_place, write_text
from tests.training.run_parts import Crash


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    write_text(file, "old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise Crash

    with pytest.raises(Crash), atomically(file) as partial:
        fail(partial)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_two_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 255)  # as long as names can be
    with atomically(file) as one, atomically(file) as other:
        one.write_text("one")
        other.write_text("other")
        assert {path.name.endswith(PARTIAL) for path in tmp_path.iterdir()} == {True}
    assert file.read_text() == "one"  # the last to be done
    assert os.listdir(tmp_path) == [file.name]


def test_a_link_in_the_place_of_the_file_is_replaced_and_one_in_the_place_of_the_partial_is_not_met(
    tmp_path: Path,
) -> None:
    other, file = tmp_path / "other", tmp_path / "x.txt"
    other.write_text("mine")
    file.symlink_to(other)
    (tmp_path / f".x.txt{PARTIAL}").symlink_to(other)
    write_text(file, "new")
    assert (other.read_text(), file.read_text(), file.is_symlink()) == ("mine", "new", False)


@pytest.mark.parametrize("links", [True, False], ids=["", "no hard links"])
def test_a_new_file_is_never_written_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Neither one that was there nor one that came meanwhile, nor a link that leads nowhere."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: os.stat("/nowhere"))
    file = tmp_path / "x.txt"
    with atomically(file, new=True) as partial:
        partial.write_text("first")
    with pytest.raises(TakenError, match=r"exists and is not overwritten: .*x.txt"), atomically(file, new=True):
        pytest.fail("it was there before")
    file.unlink()

    def write_late() -> None:
        with atomically(file, new=True) as partial:
            partial.write_text("second")
            file.write_text("meanwhile")

    with pytest.raises(TakenError):
        write_late()
    assert file.read_text() == "meanwhile"
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(TakenError), atomically(file, new=True):
        pytest.fail("a link is there")
    assert os.listdir(tmp_path) == ["x.txt"]


def test_the_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    """Of one that another program makes, though it is made for its owner alone; the process's own umask stays."""
    ask = "import os; from facm.core.files import write_text; write_text(__import__('pathlib').Path('x'), ''); "
    ask += "print(oct(os.stat('x').st_mode & 0o777), oct(os.umask(0)))"
    command = ["sh", "-c", f'umask 027; exec {sys.executable} -c "{ask}"']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0o640", "0o27"], done.stderr


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, "is no regular file"),
        (os.mkdir, "is no regular file"),
        (_socket, "is no regular file"),
        (lambda path: path.symlink_to("/dev/null"), "is a symbolic link"),
        (lambda path: path.symlink_to("nowhere"), "is a symbolic link"),
        (lambda path: path.symlink_to(path), "is a symbolic link"),
    ],
    ids=["pipe", "folder", "socket", "link to a device", "link to nothing", "link to itself"],
)
def test_what_is_written_in_place_is_a_regular_file(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=f"{tmp_path}/x {said}"):
        open_in_place(tmp_path / "x", os.O_RDWR)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_is_complete_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder_atomically(out) as partial:
        (partial / "below").mkdir()
        (partial / "below/file").write_text("x")
        assert not out.exists()
    assert (out / "below/file").read_text() == "x"
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~UMASK
    with pytest.raises(TakenError), folder_atomically(out):
        raise AssertionError("nothing is written where something is")

    def fail() -> None:
        with folder_atomically(tmp_path / "other") as partial:
            (partial / "file").write_text("x")
            raise Crash

    with pytest.raises(Crash):
        fail()
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_somebody_made_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fill() -> None:
        with folder_atomically(out) as partial:
            (partial / "file").write_text("ours")
            out.mkdir()
            (out / "file").write_text("theirs")

    with pytest.raises(TakenError):
        fill()
    assert (out / "file").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [out]

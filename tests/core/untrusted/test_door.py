"""Only regular files come in, of a bounded size and depth."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from facm.core.untrusted.door import MOST_DEPTH, open_regular, parse_json, read_bytes, read_json, read_text


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "named pipe": (os.mkfifo, "is a named pipe"),
    "folder": (os.mkdir, "is a folder"),
    "socket": (_socket, "is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "link to itself": (lambda path: path.symlink_to(path), "is a symbolic link without end"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_regular_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, said = STRANGE[kind]
    path = tmp_path / "run.json"
    make(path)
    with pytest.raises(ValueError, match=f"{path} {said}"):
        open_regular(path)


def test_a_link_is_followed_unless_it_is_refused(tmp_path: Path) -> None:
    path, target = tmp_path / "run.json", tmp_path / "target"
    target.write_text("{}")
    path.symlink_to(target)
    assert read_json(path) == {}
    with pytest.raises(ValueError, match=f"{path} is a symbolic link, expected a regular file"):
        read_json(path, links=False)


def test_a_file_that_is_not_there_is_said_as_ever(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")


def test_the_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(ValueError, match=f"{path} has more than 4 bytes"):
        read_bytes(path, 4)


def test_text_is_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes("Fuß".encode())
    assert read_text(path) == "Fuß"
    path.write_bytes("Fuß".encode("latin1"))
    with pytest.raises(ValueError, match=r"run.json is not text in UTF-8 \(.* at byte 2\)"):
        read_text(path)


def test_the_depth_is_bounded_and_brackets_inside_texts_are_none() -> None:
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert json.dumps(parse_json(deep, "x")) == deep
    assert parse_json('{"a": "[[[\\"' + "[" * 100 + '"}', "x") == {"a": '[[["' + "[" * 100}
    for text in (f"[{deep}]", "[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match="x has more than 64 brackets inside each other"):
            parse_json(text, "x")


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "nul", "[1, 2", '"', "9" * 5000, "\\", '"\\', "]]]]["])
def test_what_is_not_json_is_said_with_its_place(text: str) -> None:
    with pytest.raises(ValueError, match=r"run\.json is not JSON"):
        parse_json(text, "run.json")

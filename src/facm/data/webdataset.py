"""Images in tar files, as WebDataset keeps them: members with one stem are one sample."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from facm.data.folder import SUFFIXES
from facm.data.pictures import Pictures


@dataclass(frozen=True)
class TarPictures:
    """The images in the tar file ``path``, or in the ``*.tar`` in that folder, sorted by name; within one in its order.

    A sample is an image ``key.jpg`` (or png, jpeg, webp, bmp) and its label: ``key.cls``, a number as text, or
    ``key.json`` with a number ``label``. Members of a sample lie beside each other; others are left out.
    One pass over the tars' headers finds them, later each image is read where it lies.
    ``open`` raises ValueError naming the tar, and the sample that is incomplete, occurs twice or has no such label."""

    path: str

    def open(self) -> Pictures:
        tars = tar_files(Path(self.path).expanduser())
        if not tars:
            raise ValueError(f"TarPictures: path = {self.path!r}, expected a tar file or a folder of *.tar")
        names, labels, which, spans = [], [], [], []
        for k, tar in enumerate(tars):
            for sample in _samples(tar):
                names.append(f"{tar.name}:{sample.name}")
                labels.append(sample.label)
                which.append(k)
                spans.append((sample.offset, sample.size))
        if not names:
            raise ValueError(f"TarPictures: path = {self.path!r} holds no images, expected {', '.join(SUFFIXES)}")
        place, span = np.array(which), np.array(spans)

        def read(index: int) -> IO[bytes]:
            with tars[place[index]].open("rb") as file:
                return io.BytesIO(os.pread(file.fileno(), int(span[index, 1]), int(span[index, 0])))

        return Pictures(tuple(names), np.array(labels, np.int64), (), read, f"TarPictures({self.path})")


def tar_files(path: Path) -> list[Path]:
    """``path`` if it is a file named *.tar, else the ones in that folder, sorted by name."""
    if path.is_file():
        return [path] if path.suffix == ".tar" else []
    return sorted(file for file in path.glob("*.tar") if file.is_file())


@dataclass
class _Sample:
    """The image's member and the label, as far as they have been met."""

    key: str
    name: str = ""
    offset: int = 0
    size: int = 0
    label: int = -1


def _samples(path: Path) -> Iterator[_Sample]:
    """The samples of one tar, complete."""
    current: _Sample | None = None
    seen: set[str] = set()
    for member, content in _members(path):
        folder, _, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        suffix = (dot + suffix).lower()
        if not stem or suffix not in (*SUFFIXES, ".cls", ".json"):
            continue
        key = f"{folder}/{stem}" if folder else stem
        if current is None or current.key != key:
            if current is not None:
                yield _complete(path, current)
            if key in seen:
                raise ValueError(f"{path}: sample {key} occurs twice, expected its members beside each other, once")
            seen.add(key)
            current = _Sample(key)
        if suffix in SUFFIXES:
            if current.name:
                raise ValueError(f"{path}: sample {key} has two images, {current.name} and {member.name}")
            current.name, current.offset, current.size = member.name, member.offset_data, member.size
        elif current.label < 0:
            current.label = _label(path, member.name, content)
    if current is not None:
        yield _complete(path, current)


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Each regular file's header, and its content where that is text."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header it has seen
                if not member.isreg():
                    continue
                file = tar.extractfile(member) if member.name.lower().endswith((".cls", ".json")) else None
                yield member, file.read() if file is not None else b""
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: not a whole tar file, uncompressed ({error})") from error


def _label(path: Path, name: str, content: bytes) -> int:
    try:
        value = json.loads(content)
        if name.lower().endswith(".json"):
            value = value["label"]
    except (ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{path}: {name} holds {content[:40]!r}, expected a label, a number from 0")
    return value


def _complete(path: Path, sample: _Sample) -> _Sample:
    missing = "image" if not sample.name else "label (.cls, or .json with label)" if sample.label < 0 else ""
    if missing:
        raise ValueError(f"{path}: sample {sample.key} has no {missing}")
    return sample

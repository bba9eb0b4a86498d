"""Images in tar files in the format of WebDataset: members with the same stem form one sample."""

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

HIGHEST = 2**31 - 1
"""The largest number that is taken for a class label."""
END = 2 * tarfile.BLOCKSIZE
"""Number of zero bytes that end an archive."""


@dataclass(frozen=True)
class TarPictures:
    """The images in a tar file, or in all ``*.tar`` of a folder, sorted by the files' names.

    A sample is an image ``key.jpg`` (or png, jpeg, webp, bmp) with its label: ``key.cls``, a number as text, or
    ``key.json`` with a number ``label``, or both where they agree. The members of a sample follow each other in the
    archive; other members are skipped. ``open`` reads the headers only; each image is read from the tar when needed.
    ``open`` raises ValueError naming a tar that is damaged or truncated, or a sample that is incomplete, occurs twice,
    or has no valid label or two different ones."""

    path: str
    """Tar file, or folder of tar files."""

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
    """``path`` itself if it is a file named *.tar, otherwise the tar files in that folder, sorted by name."""
    if path.is_file():
        return [path] if path.suffix == ".tar" else []
    return sorted(file for file in path.glob("*.tar") if file.is_file())


@dataclass
class _Sample:
    """A sample while its members are read: the image's place in the tar, and the label.

    fault: The error message for a .json without a valid label, raised unless a .cls has one.
    """

    key: str
    name: str = ""
    offset: int = 0
    size: int = 0
    label: int = -1
    labelled: str = ""
    fault: str = ""


def _samples(path: Path) -> Iterator[_Sample]:
    """The complete samples of one tar, in order."""
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
        else:
            _add_label(path, current, member.name, content)
    if current is not None:
        yield _complete(path, current)


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The header of each regular file, with its content where that is a label."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # otherwise it would keep all headers
                if not member.isreg():
                    continue
                file = tar.extractfile(member) if member.name.lower().endswith((".cls", ".json")) else None
                yield member, file.read() if file is not None else b""
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not a whole tar archive, uncompressed ({error})") from error


def _check_end(path: Path, offset: int) -> None:
    """Raise unless only zeros, and enough of them, follow ``offset``, where ``tarfile`` has stopped.

    It also stops silently at a damaged header, and would skip all members after it.
    """
    with path.open("rb") as file:
        file.seek(offset)
        found = 0
        while part := file.read(1 << 20):
            if part.count(0) != len(part):
                raise tarfile.ReadError(f"no header at byte {offset}, where data follow")
            found += len(part)
    if found < END:
        raise tarfile.ReadError(f"it ends at byte {offset + found} without the {END} zeros that end an archive")


def _add_label(path: Path, sample: _Sample, name: str, content: bytes) -> None:
    """Add the label in the member ``name`` to the sample; a .json without a label is accepted if there is a .cls."""
    is_json = name.lower().endswith(".json")
    value = _number(content, is_json)
    if value is None:
        fault = f"{path}: {name} holds {content[:40]!r}, expected a label, a number from 0 to {HIGHEST}"
        if not is_json:
            raise ValueError(fault)
        sample.fault = fault
    elif sample.label >= 0 and (sample.label != value or name.lower() == sample.labelled.lower()):
        raise ValueError(
            f"{path}: sample {sample.key} has two labels, {sample.label} in {sample.labelled} and {value} in {name}"
        )
    else:
        sample.label, sample.labelled = value, name


def _number(content: bytes, is_json: bool) -> int | None:
    try:
        value = json.loads(content)
        if is_json:
            value = value["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if type(value) is int and 0 <= value <= HIGHEST else None


def _complete(path: Path, sample: _Sample) -> _Sample:
    if sample.fault and sample.label < 0:
        raise ValueError(sample.fault)
    missing = "image" if not sample.name else "label (.cls, or .json with label)" if sample.label < 0 else ""
    if missing:
        raise ValueError(f"{path}: sample {sample.key} has no {missing}")
    return sample

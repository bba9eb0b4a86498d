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

HIGHEST = 2**31 - 1  # of labels: beyond, a number is no class
END = 2 * tarfile.BLOCKSIZE  # zeros that end an archive


@dataclass(frozen=True)
class TarPictures:
    """The images in the tar file ``path``, or in the ``*.tar`` in that folder, sorted by name; within one in its order.

    A sample is an image ``key.jpg`` (or png, jpeg, webp, bmp) and its label: ``key.cls``, a number as text, or
    ``key.json`` with a number ``label``; both, where they agree. Members of a sample lie beside each other; others are
    left out.
    One pass over the tars' headers finds them, later each image is read where it lies.
    ``open`` raises ValueError naming the tar that is damaged or cut short, and the sample that is incomplete, occurs
    twice, or has no such label or two."""

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
    """The image's member and the label, as far as they have been met. fault: what a .json without a label holds."""

    key: str
    name: str = ""
    offset: int = 0
    size: int = 0
    label: int = -1
    labelled: str = ""
    fault: str = ""


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
        else:
            _add_label(path, current, member.name, content)
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
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not a whole tar archive, uncompressed ({error})") from error


def _check_end(path: Path, offset: int) -> None:
    """Raise unless nothing but zeros, and enough of them, follow ``offset``, where ``tarfile`` has ended: it ends
    without a word at a damaged header as well, and would leave out all behind it."""
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
    """The label that the member ``name`` holds. A .json without one may lie beside a .cls."""
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

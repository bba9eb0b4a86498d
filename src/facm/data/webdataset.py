"""Images in tar files in the format of WebDataset: members with the same stem form one sample."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from facm.core.component import component
from facm.core.untrusted.door import open_regular, parse_json
from facm.core.untrusted.picture import MOST_BYTES
from facm.core.untrusted.tar import Damaged, Member, members
from facm.data.pictures import Pictures
from facm.data.places import SUFFIXES

HIGHEST = 2**31 - 1
"""The largest number that is taken for a class label."""
MOST_LABEL = 2**20
"""Bytes of a .cls or .json."""


@dataclass(frozen=True)
@component
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
            with open_regular(tars[place[index]]) as file:
                return io.BytesIO(os.pread(file.fileno(), int(span[index, 1]), int(span[index, 0])))

        return Pictures(tuple(names), np.array(labels, np.int64), (), read, f"TarPictures({self.path})")


def tar_files(path: Path) -> list[Path]:
    """``path`` itself if it is named *.tar and no folder, otherwise all *.tar in that folder, sorted by name."""
    if path.suffix == ".tar" and not path.is_dir():
        return [path] if os.path.lexists(path) else []
    return sorted(path.glob("*.tar"))


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
            current.name, current.offset, current.size = member.name, member.offset, member.size
            if member.size > MOST_BYTES:
                raise ValueError(f"{path}: {member.name} has {member.size} bytes, expected at most {MOST_BYTES}")
        else:
            _add_label(path, current, member.name, content)
    if current is not None:
        yield _complete(path, current)


def _members(path: Path) -> Iterator[tuple[Member, bytes]]:
    """Each regular file, with its content where that is a label."""
    try:
        with open_regular(path) as file:
            for member in members(file, os.fstat(file.fileno()).st_size):
                content = b""
                if member.name.lower().endswith((".cls", ".json")):
                    file.seek(member.offset)
                    content = file.read(min(member.size, MOST_LABEL + 1))
                    if len(content) > MOST_LABEL:
                        raise Damaged(f"{member.name} has {member.size} bytes, expected at most {MOST_LABEL}")
                yield member, content
    except (Damaged, OSError) as error:
        raise ValueError(f"{path}: not a whole tar archive, uncompressed ({error})") from error


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
        value = parse_json(content.decode(), "a label")
        if is_json:
            value = value["label"]
    except (ValueError, KeyError, TypeError):
        return None
    return value if type(value) is int and 0 <= value <= HIGHEST else None


def _complete(path: Path, sample: _Sample) -> _Sample:
    if sample.fault and sample.label < 0:
        raise ValueError(sample.fault)
    missing = "image" if not sample.name else "label (.cls, or .json with label)" if sample.label < 0 else ""
    if missing:
        raise ValueError(f"{path}: sample {sample.key} has no {missing}")
    return sample

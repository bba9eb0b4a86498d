"""CIFAR-10 in the formats in which it is distributed."""

from __future__ import annotations

import io
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from facm.core.component import component
from facm.core.types import Data
from facm.core.untrusted.arrays import load_plain
from facm.core.untrusted.door import open_regular, read_bytes
from facm.core.untrusted.picture import picture
from facm.core.untrusted.tar import BLOCK, Damaged, is_header, members
from facm.core.untrusted.unpack import OPENERS, PACKED, TooLarge, unpacked
from facm.core.untrusted.zip import Damaged as Broken
from facm.core.untrusted.zip import open_zip
from facm.data.in_memory import InMemory

CLASSES = 10
COUNTS = {"train": 50_000, "test": 10_000}
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
RECORD = 1 + 3 * 32 * 32
MOST_BATCH = 2**26
"""Bytes of a file of batches: 64 MiB, of which the published ones have 31 MB."""

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (N, 3, 32, 32) uint8 and labels (N,)."""


@dataclass(frozen=True)
@component
class Cifar10(Data):
    """CIFAR-10: (3, 32, 32) in [-1, 1], 10 classes (airplane .. truck), 50 000 "train" and 10 000 "test" images.

    The files may be
    - a folder with the original binary batches (``data_batch_1.bin`` .. ``test_batch.bin``) or Python batches
      (``data_batch_1`` .. ``test_batch``), which are read without running any code that they name; or a folder that
      contains ``cifar-10-batches-bin`` or ``cifar-10-batches-py``;
    - the tar archive of either, compressed or not;
    - a zip of lossless sheets such as ``train/003_cat_07.webp``: class 3, sheet 7, 10 x 10 images of 32 x 32. These
      images are sorted by class.

    ``open`` raises ValueError naming the file that is missing, truncated or of another format.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009)."""

    path: str
    """Folder of batches, tar archive of them, or zip of WebP sheets."""
    split: Literal["train", "test"] = "train"
    """Which images to read: 50 000 for training or 10 000 for testing."""
    flip: bool = True
    """Mirror each image left to right with probability 1/2."""
    labels: bool = True
    """Read the class labels; set to False for an unconditional network."""

    def open(self) -> InMemory:
        path = Path(self.path).expanduser()
        kind = _kind(path)
        if kind == "folder":
            images, labels = _from_batches(_files_in_folder(path, self.split), self.split, path)
        elif kind == "zip":
            images, labels = _from_sheets(path, self.split)
        elif kind == "tar":
            images, labels = _from_batches(_files_in_tar(path, self.split), self.split, path)
        else:
            raise ValueError(
                f"Cifar10: path = {self.path!r} {'is neither' if path.exists() else 'does not exist'}, "
                "expected a folder of batches, a tar archive of them or a zip of WebP sheets"
            )
        if len(images) != COUNTS[self.split]:
            raise ValueError(f"{path}: {len(images)} {self.split} images, expected {COUNTS[self.split]}")
        name = f"Cifar10({self.path}, {self.split})"
        if not self.labels:
            return InMemory(images, flip=self.flip, name=name)
        return InMemory(images, labels, num_classes=CLASSES, flip=self.flip, name=name)


def _kind(path: Path) -> str:
    """ "folder", "zip" or "tar", the latter packed or not; empty for anything else."""
    if path.is_dir():
        return "folder"
    if not path.exists():
        return ""
    with open_regular(path) as file:
        start = file.read(BLOCK)
    if start.startswith(b"PK"):
        return "zip"
    return "tar" if is_header(start) or start.startswith(tuple(OPENERS)) else ""


def _files_in_folder(path: Path, split: str) -> dict[str, bytes]:
    """The contents of the batch files in a folder, by file name; empty without any."""
    for folder in (path, path / "cifar-10-batches-bin", path / "cifar-10-batches-py"):
        there = [name for name in _file_names(split) if os.path.lexists(folder / name)]
        if there:
            return {name: _content(folder / name) for name in there}
    return {}


def _content(file: Path) -> bytes:
    try:
        return read_bytes(file, MOST_BATCH)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}, expected CIFAR-10's batches") from error


def _files_in_tar(path: Path, split: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with unpacked(path) as archive:
            for member in members(archive):  # to the end, where the checksum stands
                name = Path(member.name).name
                if name not in _file_names(split):
                    continue
                if name in found or member.size > MOST_BATCH:
                    fault = "is there twice" if name in found else f"has {member.size} bytes"
                    raise Damaged(f"{member.name} {fault}, expected one of at most {MOST_BATCH} bytes")
                found[name] = bytes(archive.read(member.size))
    except (*PACKED, TooLarge, Damaged) as error:
        raise ValueError(f"{path}: not a whole tar archive ({error})") from error
    return found


def _file_names(split: str) -> list[str]:
    return [stem + suffix for stem in BATCHES[split] for suffix in (".bin", "")]


def _from_batches(files: dict[str, bytes], split: str, path: Path) -> Arrays:
    if not files:
        raise ValueError(f"{path}: no {BATCHES[split][0]} or {BATCHES[split][0]}.bin, expected CIFAR-10's batches")
    binary = any(name.endswith(".bin") for name in files)
    names = [stem + (".bin" if binary else "") for stem in BATCHES[split]]
    missing = [name for name in names if name not in files]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing, expected {', '.join(names)}")
    read = _binary_batch if binary else _pickled_batch
    parts = [read(files[name], f"{path}: {name}") for name in names]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _binary_batch(content: bytes, name: str) -> Arrays:
    if len(content) == 0 or len(content) % RECORD:
        raise ValueError(f"{name}: {len(content)} bytes, expected a multiple of {RECORD} (a label and 3 x 32 x 32)")
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _pickled_batch(content: bytes, name: str) -> Arrays:
    batch = load_plain(content, name)
    if not isinstance(batch, dict):
        raise ValueError(f"{name}: a pickled {type(batch).__name__}, expected a dictionary of 'data' and 'labels'")
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != RECORD - 1:
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{name}: entry 'data' is {got}, expected uint8 (N, {RECORD - 1})")
    numbers = labels if isinstance(labels, list) else []
    if len(numbers) != len(data) or not all(isinstance(x, int) and 0 <= x < CLASSES for x in numbers):
        raise ValueError(f"{name}: entry 'labels' is not what was expected, a list of {len(data)} integers from 0 to 9")
    return data.reshape(-1, 3, 32, 32), np.array(numbers, np.int64)


def _from_sheets(path: Path, split: str) -> Arrays:
    try:
        with open_zip(path) as archive:
            names = sorted(
                name for name in archive.sizes if re.fullmatch(rf"{split}/\d{{1,4}}_\w+_\d{{1,9}}\.webp", name)
            )
            contents = [archive.read(name) for name in names]
    except Broken as error:
        raise ValueError(f"{path}: {error}") from error
    if not names:
        raise ValueError(f"{path}: no {split}/003_cat_07.webp or the like, expected a zip of WebP sheets")
    with ThreadPoolExecutor() as pool:
        sheets = list(pool.map(_sheet, contents, [f"{path}: {name}" for name in names]))
    labels = [int(name.removeprefix(f"{split}/").split("_")[0]) for name in names]
    return np.concatenate(sheets), np.repeat(np.array(labels, np.int64), 100)


def _sheet(content: bytes, name: str) -> np.ndarray:
    """The images (100, 3, 32, 32) of a sheet, row by row."""
    pixels = np.asarray(picture(io.BytesIO(content), name))
    if pixels.shape != (320, 320, 3):
        raise ValueError(f"{name}: {pixels.shape[1]} x {pixels.shape[0]} pixels, expected 320 x 320")
    return pixels.reshape(10, 32, 10, 32, 3).transpose(0, 2, 4, 1, 3).reshape(100, 3, 32, 32)

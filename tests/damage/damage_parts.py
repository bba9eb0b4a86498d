"""Small files of every kind that comes from elsewhere, each with a reader, and ways to damage a file."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from facm.data import Cifar10, FolderPictures, Idx, ImageFolder, TarPictures, cifar10
from facm.evaluation.reference import load_reference
from facm.latents import Latents
from facm.latents.prepare.pipeline import prepare
from facm.latents.statistics import load_statistics
from facm.networks import LightningDiT
from facm.pretrained.native_format import write_own
from facm.pretrained.reader import open_published
from tests.latents.latent_parts import PoolingConfig, photo, photos, png, tar

SIZE = 4


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    make: Writes the files into a folder, and returns the one to be damaged.
    read: What is read of the folder, as numbers that damage would change.
    checked: Whether the format has checksums of all that matters, so that no damage may be silent.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    checked: bool


def damaged(content: bytes, seed: int) -> bytes:
    """``content`` with flipped bits, another byte, a cut, a block of zeros, or two blocks exchanged."""
    rng = np.random.default_rng(seed)
    data, n = bytearray(content), len(content)
    place, length = int(rng.integers(n)), int(rng.integers(1, max(2, n // 4)))
    kind = ("bit", "bits", "byte", "cut", "zeros", "swap")[seed % 6]
    if kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else 8):
            data[int(rng.integers(n))] ^= 1 << int(rng.integers(8))
    elif kind == "byte":
        data[place] = int(rng.integers(256))
    elif kind == "cut":
        del data[place:]
    elif kind == "zeros":
        data[place : place + length] = bytes(len(data[place : place + length]))
    else:
        other = int(rng.integers(n))
        length = min(length, n - place, n - other, abs(place - other) or 1)
        one, two = data[place : place + length], data[other : other + length]
        data[place : place + length], data[other : other + length] = two, one
    return bytes(data)


def all_of(dataset: Any) -> tuple[bytes, bytes]:
    batch = dataset.read(np.arange(len(dataset)))
    return batch.x_1.numpy().tobytes(), b"" if batch.cond is None else batch.cond.numpy().tobytes()


def _bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def _idx(folder: Path, suffix: str) -> Path:
    for name, array in (("images-idx3", _bytes(6, 5, 4)), ("labels-idx1", np.arange(6, dtype=np.uint8))):
        content = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes() + array.tobytes()
        file = folder / f"train-{name}-ubyte{suffix}"
        file.write_bytes(gzip.compress(content, mtime=0) if suffix else content)
    return folder / f"train-images-idx3-ubyte{suffix}"


def _batches(folder: Path) -> Path:
    for k in range(5):
        content = {b"data": _bytes(2, 3072), b"labels": [k, k + 1]}
        (folder / f"data_batch_{k + 1}").write_bytes(pickle.dumps(content, 2))
    return folder / "data_batch_3"


def _cifar_tar(folder: Path) -> Path:
    _batches(folder)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for file in sorted(folder.glob("data_batch_*")):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{file.name}")
            member.size = file.stat().st_size
            archive.addfile(member, io.BytesIO(file.read_bytes()))
            file.unlink()
    (folder / "cifar.tar.gz").write_bytes(gzip.compress(plain.getvalue(), mtime=0))
    return folder / "cifar.tar.gz"


def _sheets(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "sheets.zip", "w") as archive:
        content = io.BytesIO()
        Image.fromarray(np.repeat(np.repeat(_bytes(20, 20, 3), 16, 0), 16, 1)).save(content, "webp", lossless=True)
        archive.writestr(zipfile.ZipInfo("train/003_cat_00.webp"), content.getvalue())
    return folder / "sheets.zip"


def _cifar(path: Path, n: int) -> tuple[bytes, bytes]:
    before = cifar10.COUNTS
    cifar10.COUNTS = {"train": n, "test": n}
    try:
        return all_of(Cifar10(str(path)).open())
    finally:
        cifar10.COUNTS = before


def _picture(suffix: str) -> Kind:
    def make(folder: Path) -> Path:
        photo(0, 12, 12).save(folder / f"a.{suffix}")
        return folder / f"a.{suffix}"

    return Kind(make, lambda f: all_of(ImageFolder(str(f), 12, classes_from_folders=False).open()), suffix == "png")


def _tar(folder: Path) -> Path:
    members: dict[str, bytes] = {}
    for i in range(4):
        members |= {
            f"{i}.png": png(photo(i)),
            f"{i}.cls" if i % 2 else f"{i}.json": b'{"label": 1}' if i % 2 == 0 else b"2",
        }
    return tar(folder / "a.tar", members)


def _read_tar(folder: Path) -> list[Any]:
    pictures = TarPictures(str(folder / "a.tar")).open()
    return [pictures.labels.tolist(), *(pictures.image(i).tobytes() for i in range(len(pictures)))]


def _latents(name: str) -> Kind:
    def make(folder: Path) -> Path:
        source = FolderPictures(str(photos(folder / "photos", 2, 3)))
        prepare(source, PoolingConfig(), folder / "latents", size=16, shard_size=4, batch_size=2, threads=1)
        return folder / "latents" / name

    def read(folder: Path) -> Any:
        data = Latents(str(folder / "latents"), num_classes=2).open()
        flip = data.read_mirrored(np.arange(len(data)), np.ones(len(data), bool)).x_1
        return all_of(data), flip.numpy().tobytes(), data.fingerprint

    return Kind(make, read, True)


class _Features(nn.Module):
    identity, num_features = "features", 6


def _reference(folder: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(50, 6))
    np.savez(folder / "a.npz", mu=x.mean(0), sigma=np.cov(x.T), n=np.array(50), rows=x.astype(np.float32))
    return folder / "a.npz"


def _read_reference(folder: Path) -> Any:
    found = load_reference(folder / "a.npz", _Features())  # type: ignore[arg-type]
    return found.mean.numpy().tobytes(), found.covariance.numpy().tobytes(), found.rows.numpy().tobytes(), found.n


CONFIG = LightningDiT(4, 2, 2, 16, 1, 2, num_classes=3)


def _own(folder: Path) -> Path:
    torch.manual_seed(0)
    said = {"learns_shortcut": "true", "which": "EMA", "statistics": json.dumps(STATISTICS)}
    write_own(folder / "a.safetensors", CONFIG, CONFIG.build().state_dict(), said)
    return folder / "a.safetensors"


STATISTICS = {"mean": [0.5, 1.0], "std": [1.5, 2.0], "multiplier": 1.25}


def _published(folder: Path) -> Path:
    torch.manual_seed(0)
    options = argparse.Namespace(model="LightningDiT", path_type="Linear")
    torch.save({"ema": CONFIG.build().state_dict(), "config": {}, "opt": {}, "args": options}, folder / "a.pt")
    return folder / "a.pt"


def _read_weights(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        found = open_published(folder / name, heads=2 if name.endswith(".pt") else None)
        told = found.statistics
        numbers = None if told is None else (told.mean.tolist(), told.std.tolist(), told.multiplier)
        weights = sorted((key, value.numpy().tobytes()) for key, value in found.state.items())
        return repr(found.network), found.which, found.learns_shortcut, numbers, weights

    return read


def _statistics(folder: Path) -> Path:
    torch.save({"mean": torch.ones(1, 3, 1, 1), "std": torch.full((1, 3, 1, 1), 2.0)}, folder / "latents_stats.pt")
    return folder / "latents_stats.pt"


def _foreign_shard(folder: Path) -> Path:
    x = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    save_file({"latents": x, "labels": torch.arange(4)}, folder / "latents_0.safetensors")
    return folder / "latents_0.safetensors"


KINDS: dict[str, Kind] = {
    "idx": Kind(lambda f: _idx(f, ""), lambda f: all_of(Idx(str(f)).open()), False),
    "idx.gz": Kind(lambda f: _idx(f, ".gz"), lambda f: all_of(Idx(str(f)).open()), True),
    "cifar folder": Kind(_batches, lambda f: _cifar(f, 10), False),
    "cifar tar.gz": Kind(_cifar_tar, lambda f: _cifar(f / "cifar.tar.gz", 10), True),
    "cifar zip": Kind(_sheets, lambda f: _cifar(f / "sheets.zip", 100), True),
    "png": _picture("png"),
    "jpg": _picture("jpg"),
    "webp": _picture("webp"),
    "bmp": _picture("bmp"),
    "tar": Kind(_tar, _read_tar, False),
    "shard": _latents("latents_rank00_shard000.safetensors"),
    "manifest": _latents("latents.json"),
    "statistics": _latents("latents_stats.pt"),
    "statistics alone": Kind(_statistics, lambda f: load_statistics(f / "latents_stats.pt").mean.tolist(), True),
    "foreign shard": Kind(
        _foreign_shard, lambda f: all_of(Latents(str(f), scale=1.0, flip=False, num_classes=4).open()), False
    ),
    "npz": Kind(_reference, _read_reference, True),
    "export": Kind(_own, _read_weights("a.safetensors"), True),
    "pt": Kind(_published, _read_weights("a.pt"), True),
}

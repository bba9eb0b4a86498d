"""Data sets whose files are no regular files, would unpack without end, or claim what they do not hold."""

import gzip
import io
import json
import os
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facm.data import Cifar10, Idx, ImageFolder, InMemory, TarPictures
from facm.data.sources import source_at
from tests.data.test_formats import save, write_mnist
from tests.latents.latent_parts import photo, png, tar


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


NOT_REGULAR: dict[str, Callable[[Path], None]] = {
    **{"a pipe": pipe, "a device": endless, "a socket": listening, "a dangling link": dangling, "a loop": loop},
    "a folder": lambda path: path.mkdir(),
}


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, entered: the path of a socket may have only a hundred bytes."""
    monkeypatch.chdir(tmp_path)
    return Path()


@pytest.mark.parametrize("kind", NOT_REGULAR)
def test_what_is_no_regular_file_is_named_in_every_data_set(short: Path, kind: str) -> None:
    make = NOT_REGULAR[kind]
    for name, read in {
        "photos/a.png": lambda: ImageFolder("photos", 4, classes_from_folders=False).open().read(np.array([0])),
        "tars/a.tar": lambda: TarPictures("tars").open(),
        "idx/train-images-idx3-ubyte": lambda: Idx("idx").open(),
        "batches/data_batch_2.bin": lambda: Cifar10("batches").open(),
    }.items():
        (short / name).parent.mkdir(exist_ok=True)
        if kind == "a folder" and name.startswith("photos"):
            save(short / "photos" / "a.png" / "b.png", np.zeros((4, 4, 3), np.uint8))  # a class, whatever its name
            assert ImageFolder("photos", 4).open().classes == ("a.png",)
            continue
        (short / "idx").mkdir(exist_ok=True)
        (short / "idx" / "train-labels-idx1-ubyte").write_bytes(b"")
        make(short / name)
        with pytest.raises(ValueError, match=Path(name).name):
            read()
    make(short / "b.tar")
    if kind != "a folder":
        with pytest.raises(ValueError, match=r"b\.tar"):
            Cifar10("b.tar").open()
        with pytest.raises(ValueError, match=r"b\.tar"):
            source_at("b.tar").open()


def test_links_to_regular_files_are_followed(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "real.png", np.full((4, 4, 3), 7, np.uint8))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to("../elsewhere/real.png")
    data = ImageFolder(str(tmp_path / "photos"), 4, classes_from_folders=False).open()
    assert ((data.read(np.array([0])).x_1 + 1) * 127.5).round().unique().tolist() == [7]


def idx(*shape: int) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)


IDX_CLAIMS = {
    "a bomb": (gzip.compress(idx(10**6, 64, 64) + bytes(2**26), 1), "unpacks to more than 67108864 bytes"),
    "2**60 pixels": (idx(2**20, 2**20, 2**20) + bytes(99), "99 bytes of data, expected 1152921504606846976"),
    "2**60 packed pixels": (gzip.compress(idx(2**20, 2**20, 2**20)), "0 bytes of data, expected 1152921504606846976"),
}


@pytest.mark.parametrize("name", IDX_CLAIMS)
def test_idx_files_that_claim_or_unpack_to_too_much(tmp_path: Path, name: str) -> None:
    content, message = IDX_CLAIMS[name]
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte: .*{message}"):
        Idx(str(tmp_path)).open()


def packed_tar(path: Path, *members: tuple[str, int]) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, size in members:
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    path.write_bytes(gzip.compress(plain.getvalue(), 1))
    return path


def test_cifar_archives_that_are_bombs_or_claim_too_much(tmp_path: Path) -> None:
    path = packed_tar(tmp_path / "a.tar.gz", ("other", 2**26))
    with pytest.raises(ValueError, match=r"a\.tar\.gz: .*it unpacks to more than 67108864 bytes"):
        Cifar10(str(path)).open()
    path = packed_tar(tmp_path / "b.tar.gz", ("x/data_batch_1", 10), ("y/data_batch_1", 10))
    with pytest.raises(ValueError, match=r"b\.tar\.gz: .*y/data_batch_1 is there twice"):
        Cifar10(str(path)).open()
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/003_cat_00.webp", bytes(2**26 + 1))
    with pytest.raises(ValueError, match=r"c\.zip: it unpacks to 67108865 bytes"):
        Cifar10(str(tmp_path / "c.zip")).open()


def test_the_checksum_at_the_end_of_a_packed_archive_counts(tmp_path: Path) -> None:
    path = packed_tar(tmp_path / "a.tar.gz", *((f"data_batch_{k}.bin", 3073) for k in range(1, 6)))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar\.gz: not a whole tar archive .*CRC"):
        Cifar10(str(path)).open()


@pytest.mark.parametrize(
    "label",
    [b"[" * 100_000, b'{"label": 1e999}', b"9" * 5000, b"\xff\xfe", b'{"label": [1]}', b"", b"NaN", b"x" * 2**21],
)
def test_hostile_labels_beside_pictures(tmp_path: Path, label: bytes) -> None:
    for suffix in ("json", "cls"):
        path = tar(tmp_path / "a.tar", {"x.png": png(photo(0)), f"x.{suffix}": label})
        with pytest.raises(ValueError, match=rf"a\.tar: .*x\.{suffix} h"):
            TarPictures(str(path)).open()


# which samples these are


def pictures(folder: Path) -> Path:
    for name in ("b", "c"):
        for i in range(3):
            save(folder / name / f"{i}.png", np.random.default_rng(i).integers(256, size=(4, 4, 3), dtype=np.uint8))
    return folder


CHANGES: dict[str, Callable[[Path], object]] = {
    "a class renamed": lambda f: (f / "c").rename(f / "a"),
    "a class renamed in its place": lambda f: (f / "c").rename(f / "d"),
    "a file added": lambda f: save(f / "b" / "new.png", np.zeros((4, 4, 3), np.uint8)),
    "a file removed": lambda f: (f / "b" / "0.png").unlink(),
    "a file moved to the other class": lambda f: (f / "b" / "0.png").rename(f / "c" / "9.png"),
    "another picture": lambda f: Image.new("RGB", (9, 9)).save(f / "b" / "0.png"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_folder_has_another_fingerprint(tmp_path: Path, name: str) -> None:
    folder = pictures(tmp_path / "photos")
    before = ImageFolder(str(folder), 4).open().fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert ImageFolder(str(moved), 4).open().fingerprint == before
    CHANGES[name](moved)
    assert ImageFolder(str(moved), 4).open().fingerprint != before


def test_arrays_have_a_fingerprint_of_what_they_hold() -> None:
    images, labels = np.zeros((3, 1, 2, 2), np.uint8), np.arange(3)
    same = InMemory(images, labels, 3).fingerprint
    assert InMemory(images.copy(), labels.astype(np.uint8), 3, name="other").fingerprint == same
    assert InMemory(images + 1, labels, 3).fingerprint != same
    assert InMemory(images, labels[::-1], 3).fingerprint != same
    assert InMemory(images[:2], labels[:2], 3).fingerprint != same
    last_bit = np.nextafter(np.ones((3, 2), np.float32), 2)
    assert InMemory(last_bit).fingerprint == InMemory(np.ones((3, 2), np.float32)).fingerprint


def test_json_without_numbers_is_read_beside_cls(tmp_path: Path) -> None:
    text = json.dumps({"caption": "x" * 10_000, "deep": [[[]]]}).encode()
    path = tar(tmp_path / "a.tar", {"x.png": png(photo(0)), "x.json": text, "x.cls": b"4"})
    assert TarPictures(str(path)).open().labels.tolist() == [4]

"""Every data configuration, read back from small files made here, and what broken files raise."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facm.core.types import Dataset
from facm.data import Checkerboard, Cifar10, Digits, Gaussian, Idx, ImageFolder, Moons, Ring, Stream, cifar10
from tests.paths import needs, outside

SHARED = outside("data")


def everything(dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None]:
    """All images as bytes (N, ...) and their labels."""
    batch = dataset.read(np.arange(len(dataset)))
    assert batch.x_1.dtype == torch.float32
    assert batch.x_1.abs().max() <= 1
    images = (batch.x_1.double().add(1).mul(127.5)).numpy()
    assert np.abs(images - images.round()).max() < 1e-4
    return images.round().astype(np.uint8), None if batch.cond is None else batch.cond.numpy()


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    images = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    images.flat[:2] = 0, 255
    return images


# digits


def test_digits() -> None:
    from sklearn.datasets import load_digits

    data = Digits().open()
    batch = data.read(np.arange(len(data)))
    assert (len(data), data.shape, data.num_classes, data.flip) == (1797, (1, 8, 8), 10, False)
    assert np.array_equal((batch.x_1[:, 0].numpy() + 1) * 8, load_digits().images)
    assert np.array_equal(batch.cond, load_digits().target)


def test_digits_parts_are_disjoint_complete_and_balanced() -> None:
    whole, train, test = (Digits(split).open().images.tobytes() for split in ("all", "train", "test"))
    scans = [sorted(part[i : i + 256] for i in range(0, len(part), 256)) for part in (whole, train, test)]
    assert scans[0] == sorted(scans[1] + scans[2])
    assert len(scans[2]) == 256
    assert set(np.bincount(Digits("test").open().labels)) == {25, 26}


def test_unknown_split() -> None:
    for config in (Digits, lambda split: Idx("", split), lambda split: Cifar10("", split)):
        with pytest.raises(ValueError, match=r"split = 'valid', expected one of .*'train', 'test'"):
            config("valid")


# idx


def write_idx(path: Path, array: np.ndarray, magic: int | None = None) -> None:
    header = struct.pack(">I", 0x800 + array.ndim if magic is None else magic)
    content = header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "", n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    images, labels = pixels(n, 3, 4), np.arange(n, dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images if prefix == "train" else images[:2])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels if prefix == "train" else labels[:2])
    return images, labels


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path: Path, suffix: str) -> None:
    images, labels = write_mnist(tmp_path, suffix)
    data = Idx(str(tmp_path)).open()
    assert (data.shape, data.num_classes, data.flip) == ((1, 3, 4), 10, False)
    read, read_labels = everything(data)
    assert np.array_equal(read[:, 0], images)
    assert np.array_equal(read_labels, labels)
    assert np.array_equal(everything(Idx(str(tmp_path), "test").open())[0][:, 0], images[:2])
    padded = Idx(str(tmp_path), pad=2, flip=True).open()
    assert padded.flip
    assert padded.shape == (1, 7, 8)
    read = everything(padded)[0][:, 0]
    assert np.array_equal(read[:, 2:-2, 2:-2], images)
    read[:, 2:-2, 2:-2] = 0
    assert not read.any()


IDX_FAULTS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "cut short": ("images", "59 bytes of data, expected 60", lambda p: p.write_bytes(p.read_bytes()[:-1])),
    "too long": ("labels", "6 bytes of data, expected 5", lambda p: p.write_bytes(p.read_bytes() + b"x")),
    "no header": ("images", "3 bytes, expected an idx header of 16", lambda p: p.write_bytes(b"abc")),
    "magic": ("labels", "magic number 0x00000802, expected 0x00000801", lambda p: write_idx(p, pixels(5), 0x802)),
    "not bytes": ("images", "magic number 0x00000d03", lambda p: write_idx(p, pixels(5, 3, 4), 0xD03)),
    "counts": ("labels", "4 labels, expected 5", lambda p: write_idx(p, pixels(4))),
    "empty": ("images", "no empty axis", lambda p: write_idx(p, np.empty((0, 3, 4), np.uint8))),
    "missing": ("labels", "holds neither", lambda p: p.unlink()),
}


@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_broken_idx(tmp_path: Path, fault: str) -> None:
    write_mnist(tmp_path)
    kind, message, damage = IDX_FAULTS[fault]
    stem = {"images": "train-images-idx3-ubyte", "labels": "train-labels-idx1-ubyte"}[kind]
    damage(tmp_path / stem)
    with pytest.raises(ValueError, match=message) as error:
        Idx(str(tmp_path)).open()
    assert stem in str(error.value)


@pytest.mark.parametrize("end", [-12, -4, -1], ids=["data", "length", "last byte"])
def test_broken_gzip(tmp_path: Path, end: int) -> None:
    write_mnist(tmp_path, ".gz")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: not a whole gzip file"):
        Idx(str(tmp_path)).open()


def test_labels_beyond_num_classes(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = Idx(str(tmp_path), num_classes=3).open()
    with pytest.raises(ValueError, match=r"has label [34], expected one within \[0, 3\)"):
        Stream(data, seed=0, batch_size=5).at(0)


# CIFAR-10


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 of 15 training images (5 batches of 3) and 3 test images: images and labels of the training part."""
    monkeypatch.setattr(cifar10, "COUNTS", {"train": 15, "test": 3})
    return pixels(15, 3, 32, 32), np.arange(15) % 10


def batches(images: np.ndarray, labels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    files = {f"data_batch_{i + 1}": (images[3 * i :][:3], labels[3 * i :][:3]) for i in range(5)}
    return files | {"test_batch": (images[:3], labels[:3])}


def binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], 1).tobytes()


def pickled(images: np.ndarray, labels: np.ndarray) -> bytes:
    entries = {b"data": images.reshape(len(images), -1), b"labels": labels.tolist(), b"batch_label": b"\xff of 5"}
    return pickle.dumps(entries, protocol=2)


def pickled_by_python_2(images: np.ndarray, labels: np.ndarray) -> bytes:
    """As the original files are written: byte strings as short binary strings, numpy under its old name."""
    n = bytes([len(images)])
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01(K" + n + b"M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", images.size) + images.tobytes() + b"tb"
        b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        b"U\tfilenames]U\x05a.pngau."
    )  # fmt: skip


WRITERS = {"binary": (binary, ".bin"), "pickled": (pickled, ""), "pickled_by_python_2": (pickled_by_python_2, "")}


def write_cifar(folder: Path, writer: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    write, suffix = WRITERS[writer]
    for name, part in batches(images, labels).items():
        (folder / (name + suffix)).write_bytes(write(*part))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", ["folder", "parent", "tar.gz"])
def test_cifar10_batches(tmp_path: Path, few: tuple[np.ndarray, np.ndarray], writer: str, place: str) -> None:
    folder = tmp_path / ("cifar-10-batches-bin" if writer == "binary" else "cifar-10-batches-py")
    write_cifar(folder, writer, *few)
    path = {"folder": folder, "parent": tmp_path, "tar.gz": tmp_path / "cifar-10.tar.gz"}[place]
    if place == "tar.gz":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, folder.name)
    data = Cifar10(str(path)).open()
    assert (data.shape, data.num_classes, data.flip) == ((3, 32, 32), 10, True)
    images, labels = everything(data)
    assert np.array_equal(images, few[0])
    assert np.array_equal(labels, few[1])
    assert np.array_equal(everything(Cifar10(str(path), "test").open())[0], few[0][:3])


class Evil:
    def __init__(self, call: Callable, *arguments: object):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple:
        return self.call, self.arguments


def test_malicious_pickle_is_refused_and_not_run(tmp_path: Path, few: tuple[np.ndarray, np.ndarray]) -> None:
    write_cifar(tmp_path, "pickled", *few)
    mark = tmp_path / "mark"
    for evil in (Evil(os.mkdir, str(mark)), Evil(eval, f"__import__('os').mkdir({str(mark)!r})")):
        content = pickle.dumps({b"data": evil, b"labels": [0]}, protocol=2)
        pickle.loads(content)
        assert mark.is_dir()  # it does run where nothing stops it
        mark.rmdir()
        (tmp_path / "data_batch_3").write_bytes(content)
        with pytest.raises(ValueError, match=r"data_batch_3: .*refused (posix|nt|__builtin__)\.\w+"):
            Cifar10(str(tmp_path)).open()
        assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil(np.load, "file")), r"refused numpy\.load"),
        (b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "refused encoding 'rot13'"),
        (pickle.dumps({}), "entry 'data' is NoneType"),
        (pickle.dumps([1]), "a pickled list, expected a dictionary"),
        (pickle.dumps({b"data": np.zeros((3, 3072)), b"labels": [0] * 3}), "float64"),
        (pickle.dumps({b"data": np.zeros((3, 300), np.uint8), b"labels": [0] * 3}), r"\(3, 300\)"),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10**30]}, 2),
            "entry 'labels' is not what was expected, a list of 2 integers from 0 to 9",
        ),
        (pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0] * 2}), "a list of 3 integers"),
        (pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": ["a"] * 3}), "a list of 3 integers"),
        (pickle.dumps({b"data": np.zeros((3, 3072), np.uint8)})[:-100], "not a plain pickle"),
        (b"", "not a plain pickle"),
    ],
)
def test_broken_pickles(tmp_path: Path, few: tuple[np.ndarray, np.ndarray], content: bytes, message: str) -> None:
    write_cifar(tmp_path, "pickled", *few)
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match=f"data_batch_2: .*{message}"):
        Cifar10(str(tmp_path)).open()


def test_broken_binary_batches(tmp_path: Path, few: tuple[np.ndarray, np.ndarray]) -> None:
    write_cifar(tmp_path, "binary", *few)
    file = tmp_path / "data_batch_4.bin"
    whole = file.read_bytes()
    for content in (whole[:-1], b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"data_batch_4\.bin: {len(content)} bytes, expected a multiple of 3073"):
            Cifar10(str(tmp_path)).open()
    file.write_bytes(whole[:-3073])
    with pytest.raises(ValueError, match="14 train images, expected 15"):
        Cifar10(str(tmp_path)).open()
    file.unlink()
    with pytest.raises(ValueError, match=r"data_batch_4\.bin missing"):
        Cifar10(str(tmp_path)).open()


def test_broken_tar(tmp_path: Path, few: tuple[np.ndarray, np.ndarray]) -> None:
    write_cifar(tmp_path / "batches", "binary", *few)
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "batches", "batches")
    content = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half\.tar\.gz: "):
        Cifar10(str(tmp_path / "half.tar.gz")).open()


def test_cifar10_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data_batch_1 or data_batch_1\.bin"):
        Cifar10(str(tmp_path)).open()
    with pytest.raises(ValueError, match=r"path = '.*/nothing' does not exist"):
        Cifar10(str(tmp_path / "nothing")).open()
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="is neither, expected a folder of batches"):
        Cifar10(str(tmp_path / "text")).open()


def webp(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "webp", lossless=True, exact=True)
    return content.getvalue()


def test_cifar10_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "COUNTS", {"train": 200, "test": 100})
    sheets = pixels(3, 320, 320, 3)
    names = ["train/003_cat_01.webp", "train/009_truck_00.webp", "test/000_airplane_00.webp"]
    path = tmp_path / "sheets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", "sheets")
        for name, sheet in reversed(list(zip(names, sheets, strict=True))):
            archive.writestr(name, webp(sheet))
    images, labels = everything(Cifar10(str(path)).open())
    assert labels is not None
    assert labels.tolist() == [3] * 100 + [9] * 100
    for i in (0, 1, 9, 10, 57, 99):
        row, column = divmod(i, 10)
        tile = (slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32))
        assert np.array_equal(images[i].transpose(1, 2, 0), sheets[0][tile])
        assert np.array_equal(images[100 + i].transpose(1, 2, 0), sheets[1][tile])
    assert everything(Cifar10(str(path), "test").open())[0].shape == (100, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/003_cat_00.webp", webp(pixels(320, 320, 3))[:-5000], "train/003_cat_00.webp: unreadable image"),
        ("train/003_cat_00.webp", webp(pixels(32, 64, 3)), "train/003_cat_00.webp: 64 x 32 pixels, expected 320 x 320"),
        ("train/003_cat_00.webp", webp(pixels(320, 320, 3)), "100 train images, expected 50000"),
        ("train/cat.png", b"", "no train/003_cat_07.webp or the like, expected a zip"),
    ],
)
def test_broken_sheets(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "sheets.zip", "w") as archive:
        archive.writestr(name, content)
    with pytest.raises(ValueError, match=f"sheets.zip: {message}"):
        Cifar10(str(tmp_path / "sheets.zip")).open()


def test_corrupt_zip_entry(tmp_path: Path) -> None:
    path = tmp_path / "sheets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train/003_cat_00.webp", bytes(1000))
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train/003_cat_00\.webp: broken zip entry"):
        Cifar10(str(path)).open()


# folders of images


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)


def test_image_folder(tmp_path: Path) -> None:
    images = pixels(4, 6, 6, 3)
    save(tmp_path / "dog" / "b.png", images[2])
    save(tmp_path / "dog" / "deep" / "a.BMP", images[3])
    save(tmp_path / "cat" / "z.png", images[1])
    save(tmp_path / "cat" / "a.png", images[0])
    save(tmp_path / ".hidden" / "a.png", images[0])
    save(tmp_path / "dog" / "._b.png", images[0])
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    data = ImageFolder(str(tmp_path), size=6).open()
    assert data.files == ("cat/a.png", "cat/z.png", "dog/b.png", "dog/deep/a.BMP")
    assert (len(data), data.shape, data.num_classes, data.flip) == (4, (3, 6, 6), 2, True)
    assert data.classes == ("cat", "dog")
    read, labels = everything(data)
    assert np.array_equal(read, images.transpose(0, 3, 1, 2))
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(data.read(np.array([3, 1])).x_1, data.read(np.arange(4)).x_1[[3, 1]])

    unlabelled = ImageFolder(str(tmp_path), size=6, classes_from_folders=False, flip=False).open()
    assert (unlabelled.num_classes, unlabelled.flip) == (None, False)
    read, labels = everything(unlabelled)
    assert labels is None
    assert np.array_equal(read, images.transpose(0, 3, 1, 2))


def test_image_folder_crops_the_centre_and_resizes(tmp_path: Path) -> None:
    wide = np.zeros((8, 20, 3), np.uint8)
    wide[:, 6:10] = 200  # the left half of the central square
    wide[:, :6] = 255  # cut off
    save(tmp_path / "a.png", wide)
    save(tmp_path / "b.png", wide.transpose(1, 0, 2))
    read, _ = everything(ImageFolder(str(tmp_path), size=2, classes_from_folders=False).open())
    assert np.abs(read[0].astype(int) - [[200, 0], [200, 0]]).max() <= 20  # bicubic overshoots at an edge
    assert np.array_equal(read[1], read[0].transpose(0, 2, 1))
    larger, _ = everything(ImageFolder(str(tmp_path), size=16, classes_from_folders=False).open())
    assert larger.shape == (2, 3, 16, 16)


def test_image_folder_colours(tmp_path: Path) -> None:
    grey = pixels(5, 5)
    save(tmp_path / "a.png", grey)
    save(tmp_path / "b.png", np.repeat(grey[..., None], 3, 2))
    clear = np.dstack([np.full((5, 5, 3), 255, np.uint8), np.zeros((5, 5), np.uint8)])
    clear[0, 0, 3] = 255
    save(tmp_path / "c.png", clear)
    config = ImageFolder(str(tmp_path), size=5, classes_from_folders=False)
    read, _ = everything(config.open())
    assert np.array_equal(read[0], np.stack([grey] * 3))
    assert np.array_equal(read[1], read[0])
    assert read[2][:, 0, 0].tolist() == [255] * 3  # opaque white
    assert read[2].sum() == 3 * 255  # the rest shows the black behind it, not the hidden white
    one = ImageFolder(str(tmp_path), size=5, classes_from_folders=False, channels=1).open()
    assert one.shape == (1, 5, 5)
    assert np.array_equal(everything(one)[0][1][0], grey)


def test_image_folder_turns_photographs_upright(tmp_path: Path) -> None:
    image = pixels(4, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    read, _ = everything(ImageFolder(str(tmp_path), size=4, classes_from_folders=False).open())
    assert np.array_equal(read[0], image[::-1, ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp"])
def test_broken_image_is_named(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"good.{suffix}", pixels(64, 64, 3))
    content = (tmp_path / f"good.{suffix}").read_bytes()
    for broken in (content[: len(content) // 2], b"no image"):
        (tmp_path / f"broken.{suffix}").write_bytes(broken)
        data = ImageFolder(str(tmp_path), size=8, classes_from_folders=False).open()
        assert data.read(np.array([1])).x_1.shape == (1, 3, 8, 8)
        with pytest.raises(ValueError, match=rf"broken\.{suffix}: unreadable image"):
            data.read(np.array([1, 0]))


def test_deep_images_are_refused_not_clipped(tmp_path: Path) -> None:
    save(tmp_path / "deep.png", np.full((4, 4), 40_000, np.uint16))
    data = ImageFolder(str(tmp_path), size=4, classes_from_folders=False).open()
    with pytest.raises(ValueError, match=r"deep\.png has over 8 bits a channel \(16\), expected 8"):
        data.read(np.array([0]))


def test_bad_image_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path = '.*/nothing', expected an existing folder"):
        ImageFolder(str(tmp_path / "nothing"), size=4).open()
    with pytest.raises(ValueError, match="holds no images"):
        ImageFolder(str(tmp_path), size=4).open()
    save(tmp_path / "cat" / "a.png", pixels(4, 4, 3))
    save(tmp_path / "loose.png", pixels(4, 4, 3))
    with pytest.raises(ValueError, match=r"loose\.png lies in no class folder"):
        ImageFolder(str(tmp_path), size=4).open()
    with pytest.raises(ValueError, match="size = 0"):
        ImageFolder(str(tmp_path), size=0)
    with pytest.raises(ValueError, match="channels = 2, expected one of 1, 3"):
        ImageFolder(str(tmp_path), size=4, channels=2)


def test_links_are_followed_but_loops_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png", pixels(4, 4, 3))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    assert ImageFolder(str(tmp_path / "root"), size=4).open().files == ("cat/a.png",)
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    with pytest.raises(ValueError, match="are one folder"):
        ImageFolder(str(tmp_path / "root"), size=4).open()


# toys


@pytest.mark.parametrize("config", [Ring(), Moons(), Checkerboard(), Ring(modes=5, noise=0.2), Checkerboard(cells=2)])
def test_toys_are_standardised(config: Ring | Moons | Checkerboard) -> None:
    data = config.open()
    x = data.read(np.arange(len(data))).x_1.numpy().astype(float)
    assert x.shape == (8192, 2)
    error = 5 / 8192**0.5
    assert np.abs(x.mean(0)).max() < error
    assert np.abs(x.var(0) - 1).max() < 2 * error
    again, other = config.open(), type(config)(seed=1).open()
    assert np.array_equal(again.images, data.images)
    assert not np.array_equal(other.images, data.images)


def test_ring() -> None:
    data = Ring(modes=8, n=8000, noise=0.05).open()
    scale = (1 / 2 + 0.05**2) ** -0.5
    assert data.num_classes == 8
    for mode in range(8):
        x = data.images[data.labels == mode].astype(float) / scale
        assert len(x) == 1000
        angle = mode * np.pi / 4
        assert np.abs(x.mean(0) - [np.cos(angle), np.sin(angle)]).max() < 5 * 0.05 / 1000**0.5
        assert np.abs(x.std(0) - 0.05).max() < 5 * 0.05 / 2000**0.5


def test_moons_without_noise_are_half_circles() -> None:
    data = Moons(n=1000, noise=0).open()
    x = data.images * np.sqrt([3 / 4, 9 / 16 - 1 / np.pi]) + [1 / 2, 1 / 4]
    upper, lower = x[data.labels == 0], x[data.labels == 1]
    assert len(upper) == len(lower) == 500
    assert np.allclose((upper**2).sum(1), 1, atol=1e-5)
    assert np.allclose(((lower - [1, 1 / 2]) ** 2).sum(1), 1, atol=1e-5)
    assert upper[:, 1].min() > -1e-5
    assert lower[:, 1].max() < 1 / 2 + 1e-5


def test_checkerboard_fills_its_dark_squares_evenly() -> None:
    x = Checkerboard(cells=4, n=8000).open().images
    column, row = np.floor((x / np.sqrt(3) + 1) * 2).astype(int).T
    assert ((column + row) % 2 == 0).all()
    counts = np.bincount(4 * row + column, minlength=16).reshape(4, 4)
    dark = (np.add.outer(np.arange(4), np.arange(4)) % 2) == 0
    assert (np.abs(counts[dark] - 1000) < 5 * 1000**0.5).all()


def test_gaussian() -> None:
    data = Gaussian(mean=-2, std=0.5, dim=3, n=10_000).open()
    assert data.shape == (3,)
    assert data.num_classes is None
    assert np.abs(data.images.mean(0) + 2).max() < 5 * 0.5 / 100
    assert np.abs(np.cov(data.images.T) - 0.25 * np.eye(3)).max() < 0.02


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (Ring, {"modes": 0}, "Ring: modes = 0"),
        (Ring, {"noise": -1}, "Ring: noise = -1"),
        (Moons, {"n": 0}, "Moons: n = 0"),
        (Checkerboard, {"cells": 3}, "cells = 3, expected an even number"),
        (Gaussian, {"std": -1}, "Gaussian: std = -1"),
        (Gaussian, {"dim": 0}, "Gaussian: dim = 0"),
        (Idx, {"folder": "", "pad": -1}, "Idx: pad = -1"),
    ],
)
def test_bad_options(config: type, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


# the real files, where they are at hand


def real(*parts: str) -> str:
    return str(needs(SHARED.joinpath(*parts)))


@pytest.mark.slow
def test_real_cifar10() -> None:
    path = real("cifar10", "cifar10_webp.zip")
    for split, n in (("train", 50_000), ("test", 10_000)):
        data = Cifar10(path, split).open()
        assert np.bincount(data.labels).tolist() == [n // 10] * 10
        if split == "train":  # the published means
            mean = data.images.mean((0, 2, 3)) / 255
            assert np.abs(mean - [0.4914, 0.4822, 0.4465]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "mean"), [("mnist", 0.1307), ("fashion_mnist", 0.2860)])
def test_real_mnist(folder: str, mean: float) -> None:
    train, test = (Idx(real(folder), split).open() for split in ("train", "test"))
    assert (len(train), len(test)) == (60_000, 10_000)
    assert abs(train.images.mean() / 255 - mean) < 1e-4

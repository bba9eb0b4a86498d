"""Latents on disk: the reference's reader to the bit, every type, any position, and what a broken folder raises."""

import json
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from facm.core.serialize import to_json
from facm.core.untrusted.safetensors_header import read_header
from facm.data import Stream, batches, read_checked
from facm.data.crop import centre_crop
from facm.data.in_memory import from_bytes
from facm.latents import Latents, shards
from tests.latents.latent_parts import PoolingConfig, change, latents, photos
from tests.paths import GOLDEN, needs, outside

SHARED = outside("golden")
EXPECTED = load_file(GOLDEN / "dataset_expected.safetensors")
PICKED = json.loads((GOLDEN / "dataset_expected.json").read_text())["picked"]
FIRST, SECOND = "latents_rank00_shard000.safetensors", "latents_rank00_shard001.safetensors"


def small(folder: Path, **options: object) -> Latents:
    return Latents(str(folder), **{"num_classes": 8} | options)


# the reference's


def test_reads_what_the_reference_reads() -> None:
    mirrored = np.array([name == "latents_flip" for name in PICKED])
    data = Latents(str(GOLDEN / "dataset")).open()
    batch = data.read_mirrored(np.arange(16), mirrored)
    assert torch.equal(batch.x_1, EXPECTED["features"])
    assert torch.equal(batch.cond, EXPECTED["labels"])
    assert torch.equal(data.statistics.mean, EXPECTED["mean"].flatten())
    assert torch.equal(data.statistics.std, EXPECTED["std"].flatten())
    half = Latents(str(GOLDEN / "dataset"), multiplier=0.5).open().read_mirrored(np.arange(1), mirrored[:1])
    assert torch.equal(half.x_1[0], EXPECTED["item0_multiplier0.5"])
    assert (len(data), data.shape, data.num_classes, data.flip) == (16, (4, 8, 8), 1000, True)


def test_the_copies_are_the_originals() -> None:
    needs(SHARED)
    for name in ("dataset/latents_stats.pt", f"dataset/{FIRST}", f"dataset/{SECOND}", "dataset_expected.safetensors"):
        assert (GOLDEN / name).read_bytes() == (SHARED / name).read_bytes()
    ours, theirs = load_file(GOLDEN / "img_transform.safetensors"), load_file(SHARED / "img_transform.safetensors")
    for name, image in theirs.items():
        assert np.array_equal(ours[name] if name == "src_u8" else from_bytes(ours[name].numpy()), image)


@pytest.mark.parametrize("size", [128, 64, 32])
def test_crops_as_the_reference_crops(size: int) -> None:
    golden = load_file(GOLDEN / "img_transform.safetensors")
    crop = centre_crop(Image.fromarray(golden["src_u8"].numpy()), size)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.uint8
    assert np.array_equal(crop.transpose(2, 0, 1), golden[f"crop{size}"])
    if size == 64:
        assert np.array_equal(crop.transpose(2, 0, 1)[:, :, ::-1], golden["crop64_flip"])
    if size == 32:
        assert np.array_equal(from_bytes(crop.transpose(2, 0, 1)), golden["crop32_float"])


def test_a_crop_of_the_right_size_keeps_its_pixels_and_halving_starts_at_twice_the_size() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(16, 20, 3), dtype=np.uint8)
    assert np.array_equal(centre_crop(Image.fromarray(pixels), 16), pixels[:, 2:18])
    upright = Image.fromarray(pixels.transpose(1, 0, 2))
    assert np.array_equal(centre_crop(upright, 16), pixels.transpose(1, 0, 2)[2:18])
    wide = (pixels[:, ::2].astype(int) + pixels[:, 1::2] + 1) // 2  # Pillow rounds after each axis
    boxes = (wide[::2] + wide[1::2] + 1) // 2
    assert np.array_equal(centre_crop(Image.fromarray(pixels), 8), boxes[:, 1:9])


# reading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_indices_of_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = latents(tmp_path, (5, 3, 1), dtype=dtype)
    data = small(tmp_path, num_classes=9).open()
    indices = np.array([8, 0, 4, 5, 5, 7])
    mirrored = np.array([True, False, True, False, True, True])
    expected = torch.where(
        torch.from_numpy(mirrored)[:, None, None, None], stored["latents_flip"][indices], stored["latents"][indices]
    )
    batch = data.read_mirrored(indices, mirrored)
    assert batch.x_1.dtype == torch.float32
    assert torch.equal(batch.x_1, data.statistics.standardise(expected.float()))
    assert batch.cond is not None
    assert batch.cond.tolist() == indices.tolist()
    assert torch.equal(data.read(indices).x_1, data.statistics.standardise(stored["latents"][indices].float()))
    assert len(data.read(indices[:0]).x_1) == 0
    for index in (-1, 9):
        with pytest.raises(IndexError, match=f"{index}.* of 9 samples"):
            data.read(np.array([0, index]))


def test_standardised_once_with_the_multiplier_or_scaled(tmp_path: Path) -> None:
    stored = latents(tmp_path)["latents"]
    mean, std = (torch.linspace(*ends, 4).reshape(-1, 1, 1) for ends in ((-1, 1), (1, 2)))
    every = np.arange(8)
    torch.testing.assert_close(small(tmp_path).open().read(every).x_1, (stored - mean) / std)
    torch.testing.assert_close(small(tmp_path, multiplier=0.5).open().read(every).x_1, (stored - mean) / std / 2)
    (tmp_path / "latents_stats.pt").unlink()  # not needed
    data = small(tmp_path, scale=0.18215).open()
    torch.testing.assert_close(data.read(every).x_1, stored * 0.18215)
    assert data.statistics.multiplier == 0.18215


def test_a_stream_takes_the_latents_of_mirrored_images_not_mirrored_latents(tmp_path: Path) -> None:
    stored = latents(tmp_path)
    stream = Stream(small(tmp_path, scale=1.0).open(), seed=0, batch_size=16)
    batch = stream.at(0)
    assert batch.cond is not None
    assert batch.cond.tolist() == [1, 4, 5, 6, 2, 0, 3, 7, 7, 6, 2, 3, 1, 0, 4, 5]
    flags = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]).bool().reshape(-1, 1, 1, 1)
    assert torch.equal(batch.x_1, torch.where(flags, stored["latents_flip"][batch.cond], stored["latents"][batch.cond]))
    assert torch.equal(Stream(stream.dataset, seed=0, batch_size=3).at(5).x_1, batch.x_1[5:8])
    assert torch.equal(next(batches(stream, 0, 16, workers=1)).x_1, batch.x_1)
    plain = Stream(small(tmp_path, scale=1.0, flip=False).open(), seed=0, batch_size=16).at(0)
    assert torch.equal(plain.x_1, stored["latents"][plain.cond])


def test_without_mirrored_latents(tmp_path: Path) -> None:
    stored = latents(tmp_path)
    change(tmp_path / SECOND, latents_flip=None)
    with pytest.raises(ValueError, match=rf"{SECOND} holds no latents_flip: set flip = False"):
        small(tmp_path).open()
    data = small(tmp_path, flip=False, scale=1.0).open()
    assert torch.equal(data.read(np.arange(8)).x_1, stored["latents"])
    with pytest.raises(ValueError, match=f"{SECOND} holds no latents_flip, asked for mirrored"):
        data.read_mirrored(np.array([6]), np.array([True]))


def test_opening_reads_headers_and_labels_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents(tmp_path)
    mapped = []
    monkeypatch.setattr(shards.np, "memmap", lambda *arguments: mapped.append(arguments))
    data = small(tmp_path).open()
    assert not mapped
    with pytest.raises(IndexError):
        data.read(np.array([0]))
    assert len(mapped) == 1


def test_data_that_begin_at_an_odd_byte(tmp_path: Path) -> None:
    stored = latents(tmp_path)
    rewrite_header(tmp_path / FIRST, lambda header: header.update(__metadata__={"k": "v"}))
    if (tmp_path / FIRST).read_bytes()[0] % 2 == 0:
        rewrite_header(tmp_path / FIRST, lambda header: header.update(__metadata__={"k": "vv"}))
    assert (tmp_path / FIRST).read_bytes()[0] % 2
    batch = small(tmp_path, scale=1.0).open().read(np.arange(8))
    assert torch.equal(batch.x_1, stored["latents"])
    assert torch.equal(batch.cond, stored["labels"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_latents_are_named_with_their_shard(tmp_path: Path, value: float) -> None:
    stored = latents(tmp_path)["latents_flip"][5:].clone()
    stored[1, 2, 0, 1] = value
    change(tmp_path / SECOND, latents_flip=stored)
    data = small(tmp_path).open()
    assert read_checked(data, np.arange(8)).x_1.isfinite().all()
    with pytest.raises(ValueError, match=rf"sample 6 \({SECOND}, row 1\) has non-finite values in x_1"):
        read_checked(data, np.array([2, 6]), np.array([True, True]))


# what open refuses


def rewrite_header(file: Path, edit: Callable[[dict], object]) -> None:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no shards": ("holds no latents, expected latents_", lambda f: [(f / name).unlink() for name in (FIRST, SECOND)]),
    "cut short": (rf"{SECOND}: \d+ bytes, expected \d+ by its header", lambda f: cut(f / SECOND, -1)),
    "too long": (
        rf"{SECOND}: \d+ bytes, expected \d+ by",
        lambda f: (f / SECOND).write_bytes((f / SECOND).read_bytes() + b"x"),
    ),
    "empty": (rf"{FIRST}: not a whole safetensors file", lambda f: (f / FIRST).write_bytes(b"")),
    "in the header": (
        rf"{FIRST}: not a whole safetensors file \(its header is cut short",
        lambda f: cut(f / FIRST, 50),
    ),
    "not JSON": (
        rf"{FIRST}: not a whole safetensors file",
        lambda f: (f / FIRST).write_bytes(struct.pack("<Q", 4) + b"{..}"),
    ),
    "huge header": (
        rf"{FIRST}: not a whole safetensors file",
        lambda f: (f / FIRST).write_bytes(struct.pack("<Q", 1 << 60) + b"{..}"),
    ),
    "a pickle": (rf"{FIRST}: not a whole safetensors file", lambda f: torch.save({"latents": 1}, f / FIRST)),
    "sizes": (
        rf"{FIRST}: not a whole safetensors file \('latents' has 480 bytes for 96 values of F32",
        lambda f: rewrite_header(f / FIRST, lambda h: h["latents"].update(shape=[4, 4, 3, 2])),
    ),
    "other shape": (rf"{SECOND}: latents are F32 \(4, 3, 3\), expected F32 \(4, 3, 2\) as in", lambda f: other(f, 3)),
    "other type": (rf"{SECOND}: latents are F16 \(4, 3, 2\), expected F32", lambda f: other(f, 2, torch.float16)),
    "type": (r"latents are F64 \(3, 4, 3, 2\), expected F32, F16, BF16", lambda f: other(f, 2, torch.float64)),
    "axes": (
        r"latents are F32 \(5, 24\), expected .*\(N, C, H, W\)",
        lambda f: change(f / FIRST, latents=torch.zeros(5, 24)),
    ),
    "flip differs": (
        r"latents_flip are F32 \(4, 4, 3, 2\), expected F32 \(5, 4, 3, 2\)",
        lambda f: change(f / FIRST, latents_flip=torch.zeros(4, 4, 3, 2)),
    ),
    "no latents": (rf"{FIRST} holds labels, latents_flip, expected", lambda f: change(f / FIRST, latents=None)),
    "no labels": (rf"{FIRST} holds latents, latents_flip, expected", lambda f: change(f / FIRST, labels=None)),
    "label type": (
        r"labels are I32 \(5,\), expected I64 \(5,\)",
        lambda f: change(f / FIRST, labels=torch.zeros(5).int()),
    ),
    "label count": (
        r"labels are I64 \(4,\), expected I64 \(5,\): one per",
        lambda f: change(f / FIRST, labels=torch.zeros(4).long()),
    ),
    "label": (
        rf"{FIRST}: row 3 has label 8, expected one within \[0, 8\)",
        lambda f: change(f / FIRST, labels=torch.tensor([0, 7, 1, 8, 9])),
    ),
    "negative label": (
        rf"{FIRST}: row 1 has label -1",
        lambda f: change(f / FIRST, labels=torch.tensor([0, -1, 0, 0, 0])),
    ),
    "no statistics": (r"latents_stats.pt: there is no such file", lambda f: (f / "latents_stats.pt").unlink()),
    "statistics": (
        r"latents_stats.pt is of 3 channels, the latents beside it have 4",
        lambda f: torch.save({"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, f / "latents_stats.pt"),
    ),
    "type is no text": (
        rf"{FIRST}: not a whole safetensors file \('latents' has dtype = \['F32'\], expected one of",
        lambda f: rewrite_header(f / FIRST, lambda h: h["latents"].update(dtype=["F32"])),
    ),
    "offsets": (
        rf"{FIRST}: not a whole safetensors file \('latents' has shape = .*, data_offsets = \[-480, 0\]",
        lambda f: rewrite_header(f / FIRST, lambda h: h["latents"].update(data_offsets=[-480, 0])),
    ),
    "deep header": (
        rf"{FIRST}: not a whole safetensors file",
        lambda f: (f / FIRST).write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000),
    ),
    "manifest": (
        r"latents.json: not the manifest of prepared latents",
        lambda f: (f / "latents.json").write_text("{}"),
    ),
}


def cut(file: Path, end: int) -> None:
    file.write_bytes(file.read_bytes()[:end])


def other(folder: Path, width: int, dtype: torch.dtype = torch.float32) -> None:
    x = torch.zeros(3, 4, 3, width, dtype=dtype)
    change(folder / SECOND, latents=x, latents_flip=x.clone())


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_folders(tmp_path: Path, fault: str) -> None:
    latents(tmp_path)
    message, damage = FAULTS[fault]
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        small(tmp_path).open()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale = 0.0, expected a number within"),
        ({"multiplier": -1.0}, "multiplier = -1.0, expected a number within"),
        ({"scale": 0.5, "multiplier": 2.0}, "multiplier = 2.0, expected 1 with scale = 0.5: one of them"),
        ({"num_classes": 0}, "num_classes = 0, expected an integer within"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Latents("anywhere", **options)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path = .*absent', expected an existing folder"):
        Latents(str(tmp_path / "absent")).open()


# beside a manifest


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    from facm.data.pictures import FolderPictures
    from facm.latents.prepare import prepare

    source = FolderPictures(str(photos(tmp_path / "photos")))
    prepare(source, PoolingConfig(path="here"), tmp_path / "latents", size=16, shard_size=7)
    return tmp_path / "latents"


def edit_manifest(folder: Path, **fields: object) -> None:
    content = json.loads((folder / "latents.json").read_text())
    del content["digest"]  # as the first version wrote it
    (folder / "latents.json").write_text(json.dumps(content | fields))


def edit_records(folder: Path, edit: Callable[[list], list]) -> None:
    edit_manifest(folder, shards=edit(json.loads((folder / "latents.json").read_text())["shards"]))


MANIFEST_FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": (rf"1 shards missing: {SECOND}", lambda f: (f / SECOND).unlink()),
    "all missing": (rf"2 shards missing: {FIRST}", lambda f: [(f / name).unlink() for name in (FIRST, SECOND)]),
    "unknown": (
        "1 shards that latents.json does not name: latents_x.safetensors",
        lambda f: (f / "latents_x.safetensors").write_bytes((f / FIRST).read_bytes()),
    ),
    "size": (rf"{SECOND}: \d+ bytes, expected \d+ by latents.json", lambda f: cut(f / SECOND, -8)),
    "statistics": (
        r"latents_stats.pt: statistics of another data set \([0-9a-f]{16}, expected [0-9a-f]{16}\)",
        lambda f: torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, f / "latents_stats.pt"),
    ),
    "format": (
        "latents.json: format = 'facm-latents-9', expected 'facm-latents-1'",
        lambda f: edit_manifest(f, format="facm-latents-9"),
    ),
    "fields": ("latents.json: not the manifest of prepared latents", lambda f: edit_manifest(f, more=1)),
    "not JSON": ("latents.json: not the manifest", lambda f: (f / "latents.json").write_text("{")),
    "deep": ("latents.json: not the manifest", lambda f: (f / "latents.json").write_text("[" * 100_000)),
    "autoencoder": (
        r"latents.json: not the manifest .*autoencoder = 'VAVAE', expected an object",
        lambda f: edit_manifest(f, autoencoder="VAVAE"),
    ),
    "text": ("dtype = 32, expected text", lambda f: edit_manifest(f, dtype=32)),
    "number": ("num_classes = True, expected a number", lambda f: edit_manifest(f, num_classes=True)),
    "true": ("sample = 1, expected true or false", lambda f: edit_manifest(f, sample=1)),
    "shape": ("shape = .'4', 4, 4.*, expected numbers and text", lambda f: edit_manifest(f, shape=["4", 4, 4])),
    "classes": (r"num_classes = 3, expected 2 as classes", lambda f: edit_manifest(f, classes=["a", "b"])),
    "twice": (rf"latents.json: names {FIRST} twice, expected each", lambda f: edit_records(f, lambda r: r + r[:1])),
    "record's number": ("n = '7', expected a number", lambda f: edit_records(f, lambda r: [r[0] | {"n": "7"}, r[1]])),
    "record's sums": (
        r"sum = \(1.0,\), squares = .*, expected numbers \(C,\) twice",
        lambda f: edit_records(f, lambda r: [r[0] | {"sum": [1.0]}, r[1]]),
    ),
}


@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_folders_that_differ_from_their_manifest(prepared: Path, fault: str) -> None:
    message, damage = MANIFEST_FAULTS[fault]
    damage(prepared)
    with pytest.raises(ValueError, match=message):
        Latents(str(prepared), num_classes=3).open()


def test_the_number_of_classes_is_the_folders(prepared: Path) -> None:
    with pytest.raises(ValueError, match="num_classes = 1000, expected 3, the classes of"):
        Latents(str(prepared)).open()


def test_the_autoencoder_is_the_one_that_made_them(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"made by autoencoder pooling-\w+, but autoencoder = .*gain=2.0.* is pooling"):
        Latents(str(prepared), PoolingConfig(gain=2.0), num_classes=3).open()
    moved = PoolingConfig(path="there")  # the same weights
    assert Latents(str(prepared), moved, num_classes=3).open().autoencoder is moved
    assert Latents(str(prepared), num_classes=3).open().encoded_by == to_json(PoolingConfig(path="here"))
    monkeypatch.setattr(PoolingConfig, "build", None)  # not looked at where the configuration is the same
    assert Latents(str(prepared), PoolingConfig(path="here"), num_classes=3).open().shape == (4, 4, 4)


@pytest.mark.parametrize("options", [{}, {"scale": 0.5}])
def test_an_interrupted_preparation_is_no_data_set(prepared: Path, options: dict) -> None:
    (prepared / "latents.json").unlink()
    (prepared / SECOND).unlink()
    (prepared / "records" / f"{Path(SECOND).stem}.json").unlink()
    with pytest.raises(
        ValueError, match=r"latents: preparation not finished \(7 of 12 samples\): run facm latents encode again"
    ):
        Latents(str(prepared), num_classes=3, **options).open()
    (prepared / "records" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"not finished \(7 of an unknown number of samples\)"):
        Latents(str(prepared), num_classes=3, **options).open()


def test_which_samples_these_are(prepared: Path, tmp_path: Path) -> None:
    data = Latents(str(prepared), num_classes=3).open()
    assert data.encoder_identity == PoolingConfig().build().identity
    stored = latents(tmp_path / "plain")
    first = small(tmp_path / "plain").open()
    assert (first.encoder_identity, len(first.fingerprint)) == (None, 16)
    copied = shutil.copytree(tmp_path / "plain", tmp_path / "copied")
    assert small(copied, flip=False).open().fingerprint == first.fingerprint
    seen = {data.fingerprint, first.fingerprint}

    def added(config: Latents) -> None:
        fingerprint = config.open().fingerprint
        assert fingerprint not in seen
        seen.add(fingerprint)

    added(Latents(str(prepared), num_classes=3, multiplier=2.0))
    added(small(copied, scale=1.0))
    (copied / SECOND).rename(copied / SECOND.replace("001", "002"))
    added(small(copied))
    other = latents(tmp_path / "moved", (4, 4))  # other counts, the same bytes in all
    assert len(other["labels"]) == len(stored["labels"])
    added(small(tmp_path / "moved"))
    records = json.loads((prepared / "latents.json").read_text())["shards"]
    edit_manifest(prepared, shards=[records[0], records[1] | {"sha256": "0" * 64}])
    added(Latents(str(prepared), num_classes=3))


# damage


def flipped(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["latents", "latents_flip", "labels", "crc32"])
def test_a_flipped_bit_is_noticed_where_it_is_read(prepared: Path, name: str) -> None:
    file = sorted(prepared.glob("latents_*.safetensors"))[0]
    flipped(file, read_header(file).tensors[name].begin)

    def read() -> None:
        data = Latents(str(prepared), num_classes=3).open()
        for mirrored in (False, True):
            data.read_mirrored(np.arange(len(data)), np.full(len(data), mirrored))

    with pytest.raises(ValueError, match=rf"{file.name}: damaged: .*row 0 is not the one that was written"):
        read()


def test_a_changed_manifest_is_noticed(prepared: Path) -> None:
    text = (prepared / "latents.json").read_text()
    (prepared / "latents.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"latents\.json: not the manifest .*changed since it was written"):
        Latents(str(prepared), num_classes=3).open()


def test_latents_without_checksums_are_read_with_a_warning(tmp_path: Path, prepared: Path) -> None:
    latents(tmp_path / "reference")
    with pytest.warns(UserWarning, match="2 of 2 shards hold no checksums, .*: facm latents verify .*reference"):
        small(tmp_path / "reference").open()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Latents(str(prepared), num_classes=3).open()

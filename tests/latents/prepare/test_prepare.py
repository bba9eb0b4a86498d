"""Images to latents: the same bytes however they are made, on from any interruption, and nothing mixed or hidden."""

import dataclasses
import fcntl
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from facm.core.rng import derive
from facm.core.serialize import from_json, to_json
from facm.data import ImageFolder, Stream, read_checked
from facm.data.crop import centre_crop
from facm.data.in_memory import from_bytes
from facm.data.pictures import CroppedPictures, FolderPictures, Pictures, picture
from facm.data.sources import source_at
from facm.data.webdataset import TarPictures
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from facm.latents import Latents
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.latents.prepare import pipeline as preparing
from facm.latents.prepare import prepare, verify
from facm.latents.prepare import shard_writer as shard
from facm.latents.prepare.encode import decoded
from facm.latents.prepare.settings import Settings
from facm.latents.statistics import load_statistics
from tests.distributed.parallel_parts import call
from tests.latents.latent_parts import PoolingConfig, change, latents, photo, photos, png, tar

FIRST, SECOND = "latents_rank00_shard000.safetensors", "latents_rank00_shard001.safetensors"
SMALL = {"size": 16, "shard_size": 5, "batch_size": 2}
FILES = {"latents.json", "latents_stats.pt", *(f"latents_rank00_shard{k:03d}.safetensors" for k in range(3))}


@pytest.fixture
def source(tmp_path: Path) -> FolderPictures:
    """Twelve images in three classes: shards of 5, 5, 2."""
    return FolderPictures(str(photos(tmp_path / "photos")))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


# what is written


@pytest.mark.parametrize("sample", [False, True])
def test_writes_the_encoded_crops_plain_and_mirrored(tmp_path: Path, source: FolderPictures, sample: bool) -> None:
    out = tmp_path / "latents"
    summary = prepare(source, PoolingConfig(), out, sample=sample, seed=3, **SMALL)
    assert (summary.n, summary.made, summary.shards, summary.shape, summary.num_classes) == (12, 12, 3, (4, 4, 4), 3)
    assert summary.images_per_second == 12 / summary.seconds
    assert set(contents(out)) == FILES | {".lock"}
    tensors = [load_file(out / f"latents_rank00_shard{k:03d}.safetensors") for k in range(3)]
    assert [len(part["labels"]) for part in tensors] == [5, 5, 2]
    assert torch.cat([part["labels"] for part in tensors]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    encoder, pictures = PoolingConfig().build(), source.open()
    assert pictures.files[5] == "n0001/1.png"
    for flip, name in enumerate(("latents", "latents_flip")):
        stored = torch.cat([part[name] for part in tensors])
        for i in range(12):
            crop = from_bytes(centre_crop(pictures.image(i), 16)).transpose(2, 0, 1)
            x = torch.from_numpy(crop[:, :, ::-1].copy() if flip else crop)[None]
            rng = torch.Generator().manual_seed(derive(3, i, flip))
            noise = torch.randn(1, 4, 4, 4, generator=rng) if sample else None
            torch.testing.assert_close(stored[i : i + 1], encoder.encode(x, noise))


def test_statistics_are_of_all_latents_plain_and_mirrored(tmp_path: Path, source: FolderPictures) -> None:
    summary = prepare(source, PoolingConfig(), tmp_path / "latents", **SMALL)
    every = [load_file(tmp_path / "latents" / f"latents_rank00_shard{k:03d}.safetensors") for k in range(3)]
    values = torch.cat([part[name] for part in every for name in ("latents", "latents_flip")]).double()
    data = Latents(summary.path, PoolingConfig(), num_classes=3).open()
    torch.testing.assert_close(data.statistics.mean, values.mean((0, 2, 3)).float())
    torch.testing.assert_close(data.statistics.std, values.std((0, 2, 3), correction=0).float())
    stored = torch.load(tmp_path / "latents" / "latents_stats.pt", weights_only=True)
    assert {k: (v.shape, v.dtype) for k, v in stored.items()} == dict.fromkeys(
        ("mean", "std"), (torch.Size([1, 4, 1, 1]), torch.float32)
    )
    assert summary.statistics == data.statistics.fingerprint
    seen = Stream(data, seed=0, batch_size=12).at(0)
    assert seen.cond is not None
    assert sorted(seen.cond.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_the_manifest_says_what_they_are(tmp_path: Path, source: FolderPictures) -> None:
    out = tmp_path / "latents"
    summary = prepare(source, PoolingConfig(), out, seed=4, **SMALL)
    manifest = json.loads((out / "latents.json").read_text())
    for record in manifest["shards"]:
        content = (out / record["file"]).read_bytes()
        assert (record["bytes"], record["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        values = load_file(out / record["file"])
        both = torch.cat([values["latents"], values["latents_flip"]]).double()
        np.testing.assert_allclose(record["sum"], both.sum((0, 2, 3)), rtol=1e-9)
        np.testing.assert_allclose(record["squares"], both.square().sum((0, 2, 3)), rtol=1e-9)
    assert [record["n"] for record in manifest["shards"]] == [5, 5, 2]
    assert from_json(manifest["autoencoder"]) == PoolingConfig()
    assert manifest["identity"] == PoolingConfig().build().identity == summary.identity
    given = {name: manifest[name] for name in ("n", "shape", "dtype", "num_classes", "classes", "size", "seed")}
    assert given == {
        "n": 12,
        "shape": [4, 4, 4],
        "dtype": "F32",
        "num_classes": 3,
        "classes": ["n0000", "n0001", "n0002"],
        "size": 16,
        "seed": 4,
    }
    assert (manifest["sample"], manifest["shard_size"], manifest["format"]) == (True, 5, "facm-latents-1")
    assert manifest["source"] == f"FolderPictures({source.path})"
    assert manifest["source_fingerprint"] == source.open().fingerprint


def test_noise_is_of_the_seed_the_image_and_the_side_and_not_of_the_batch(
    tmp_path: Path, source: FolderPictures
) -> None:
    def made(name: str, **options: int) -> torch.Tensor:
        prepare(source, PoolingConfig(gain=0.0), tmp_path / name, **{**SMALL, "shard_size": 12, **options})
        tensors = load_file(tmp_path / name / FIRST)
        return torch.cat([tensors["latents"], tensors["latents_flip"]])

    noise = made("a")
    assert len(torch.unique(noise)) == noise.numel()
    assert torch.equal(made("b", batch_size=5), noise)
    assert not torch.equal(made("c", seed=1), noise)


def test_progress(tmp_path: Path, source: FolderPictures) -> None:
    said: list[tuple[int, int]] = []
    prepare(source, PoolingConfig(), tmp_path / "latents", report=lambda *state: said.append(state), **SMALL)
    assert said == [(n, 12) for n in (2, 4, 5, 7, 9, 10, 12)]


def test_names_of_many_shards() -> None:
    def names(n: int) -> tuple[int, str, str]:
        settings = Settings(n, "", None, "", 16, 10, 0, True)
        return settings.shards, settings.file(0), settings.file(settings.shards - 1)

    assert names(11) == (2, FIRST, SECOND)
    assert names(10_000) == (1000, FIRST, "latents_rank00_shard999.safetensors")
    assert names(10_001) == (1001, "latents_rank00_shard0000.safetensors", "latents_rank00_shard1000.safetensors")


# interrupted, repeated, shared


def test_goes_on_after_any_interruption_to_the_same_bytes(
    tmp_path: Path, source: FolderPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(source, PoolingConfig(), tmp_path / "whole", **SMALL)
    expected = contents(tmp_path / "whole")
    steps = [(preparing, "write_shard"), (shard, "write_text"), (shard, "sums"), (preparing, "atomically")]
    for number, (module, name) in enumerate(steps):
        out = tmp_path / f"broken{number}"
        for when in range(2):
            calls = iter(range(100))
            whole = getattr(module, name)

            def failing(*arguments: object, whole: Callable = whole, calls: Iterable = calls, at: int = when) -> object:
                if next(calls) == at:  # type: ignore[call-overload]
                    raise KeyboardInterrupt
                return whole(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(module, name, failing)
                try:
                    prepare(source, PoolingConfig(), out, **SMALL)
                except KeyboardInterrupt:
                    assert not (out / "latents.json").exists()
        prepare(source, PoolingConfig(), out, **SMALL)
        assert contents(out) == expected


def test_whole_shards_are_not_made_again_and_broken_ones_are(tmp_path: Path, source: FolderPictures) -> None:
    out = tmp_path / "latents"
    prepare(source, PoolingConfig(), out, **SMALL)
    expected = contents(out)
    times = {name: (out / name).stat().st_mtime_ns for name in (FIRST, SECOND)}
    assert prepare(source, PoolingConfig(), out, **SMALL).made == 0
    (out / SECOND).write_bytes(b"cut short")
    said: list[int] = []
    summary = prepare(source, PoolingConfig(), out, report=lambda done, _: said.append(done), **SMALL)
    assert (summary.made, summary.n, said) == (5, 12, [9, 11, 12])
    assert contents(out) == expected
    assert (out / FIRST).stat().st_mtime_ns == times[FIRST]
    assert (out / SECOND).stat().st_mtime_ns != times[SECOND]
    record = out / "records" / f"{Path(FIRST).stem}.json"
    shutil.copy(out / "records" / f"{Path(SECOND).stem}.json", record)  # of something else
    assert prepare(source, PoolingConfig(), out, **SMALL).made == 5
    assert contents(out) == expected


def prepare_twice(photos_at: str, broken_at: str, out: str) -> tuple[dict, str]:
    """What a rank did with good photos, and its error with broken ones."""
    with opened(Engine()) as world:
        said: list[int] = []
        report = lambda done, _: said.append(done)  # noqa: E731
        summary = prepare(
            FolderPictures(photos_at), PoolingConfig(), Path(out, "good"), world=world, report=report, **SMALL
        )
        good = {**dataclasses.asdict(summary), "said": said}
        try:
            prepare(FolderPictures(broken_at), PoolingConfig(), Path(out, "broken"), world=world, **SMALL)
        except (ValueError, RuntimeError) as error:
            return good, f"{type(error).__name__}: {error}"
        return good, "no error"


def test_ranks_share_the_work_and_a_broken_image_on_one_ends_both(tmp_path: Path, source: FolderPictures) -> None:
    """The bytes do not depend on the ranks."""
    prepare(source, PoolingConfig(), tmp_path / "one", **SMALL)
    broken = shutil.copytree(source.path, tmp_path / "broken photos")
    (broken / "n0001" / "2.png").write_bytes(b"no image")
    names = ("tests.latents.prepare.test_prepare", "prepare_twice")
    (first, first_error), (second, second_error) = call(2, *names, source.path, str(broken), str(tmp_path))
    assert contents(tmp_path / "good") == contents(tmp_path / "one")
    assert first["said"] == [4, 8, 10, 12]  # shards 0 and 2 in 4 batches, shard 1 in 3
    assert second["said"] == []
    assert {k: first[k] for k in ("n", "made", "statistics")} == {k: second[k] for k in ("n", "made", "statistics")}
    assert "n0001/2.png: unreadable image" in second_error
    assert "no error" not in first_error
    assert not (tmp_path / "broken" / "latents.json").exists()


# what it refuses


def test_a_folder_with_another_preparation(tmp_path: Path, source: FolderPictures) -> None:
    out = tmp_path / "latents"
    prepare(source, PoolingConfig(), out, **SMALL)
    for options, message in (
        ({"size": 8}, "size = 16, now 8"),
        ({"seed": 1}, "seed = 0, now 1"),
        ({"shard_size": 6}, "shard_size = 5, now 6"),
        ({"sample": False}, "sample = True, now False"),
    ):
        with pytest.raises(ValueError, match=f"holds another preparation: {message}; choose"):
            prepare(source, PoolingConfig(), out, **{**SMALL, **options})
    with pytest.raises(ValueError, match=r"autoencoder.gain = 1.0, now 2.0; identity = 'pooling-"):
        prepare(source, PoolingConfig(2.0), out, **SMALL)
    (Path(source.path) / "n0000" / "0.png").rename(Path(source.path) / "n0000" / "00.png")
    with pytest.raises(ValueError, match=r"another preparation: source = '[0-9a-f]{16}', now"):
        prepare(source, PoolingConfig(), out, **SMALL)
    photo(0).save(Path(source.path) / "n0000" / "000.png")
    with pytest.raises(ValueError, match="n = 12, now 13"):
        prepare(source, PoolingConfig(), out, **SMALL)


@pytest.mark.parametrize("name", [FIRST, "latents_stats.pt", "latents.json"])
def test_a_folder_with_foreign_latents(tmp_path: Path, source: FolderPictures, name: str) -> None:
    out = tmp_path / "latents"
    out.mkdir()
    (out / name).write_bytes(b"theirs")
    with pytest.raises(ValueError, match=f"holds {name}, which no preparation left here: choose another folder"):
        prepare(source, PoolingConfig(), out, **SMALL)
    assert (out / name).read_bytes() == b"theirs"


def test_a_shard_too_many(tmp_path: Path, source: FolderPictures) -> None:
    out = tmp_path / "latents"
    prepare(source, PoolingConfig(), out, **SMALL)
    shutil.copy(out / FIRST, out / "latents_rank01_shard000.safetensors")
    with pytest.raises(ValueError, match=r"latents_rank01_shard000.safetensors: expected 3 shards, and not this one"):
        prepare(source, PoolingConfig(), out, **SMALL)


def test_damaged_settings(tmp_path: Path, source: FolderPictures) -> None:
    (tmp_path / "latents" / "records").mkdir(parents=True)
    for text in ("{", "[]"):
        (tmp_path / "latents" / "records" / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=r"settings.json: not the settings of a preparation"):
            prepare(source, PoolingConfig(), tmp_path / "latents", **SMALL)


RECORD_FAULTS: dict[str, tuple[str, Callable[[dict], object]]] = {
    "short": ("changed since it was written", lambda record: record["sum"].pop()),
    "both short": ("changed since it was written", lambda record: (record["sum"].pop(), record["squares"].pop())),
    "another sum": ("changed since it was written", lambda record: record["sum"].__setitem__(1, record["sum"][1] + 1)),
    "another n": ("changed since it was written", lambda record: record.update(n=4)),
    "no digest": ("KeyError: 'digest'", lambda record: record.pop("digest")),
    "nothing": ("KeyError", lambda record: record.clear()),
}


@pytest.mark.parametrize("fault", RECORD_FAULTS)
def test_a_damaged_record_is_named_and_nothing_overwritten(made: Path, tmp_path: Path, fault: str) -> None:
    source = FolderPictures(str(made.parent / "photos"))
    out = shutil.copytree(made, tmp_path / "latents")
    message, damage = RECORD_FAULTS[fault]
    path = out / "records" / f"{Path(SECOND).stem}.json"
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    (out / FIRST).unlink()  # to be made, but not before the records are sound
    before = contents(out)
    with pytest.raises(ValueError, match=rf"records/{path.name}: not the record of a shard \(.*{message}.*; delete it"):
        prepare(source, PoolingConfig(), out, **SMALL)
    assert contents(out) == before
    path.unlink()
    assert prepare(source, PoolingConfig(), out, **SMALL).made == 10
    assert contents(out) == contents(made)


def test_out_is_a_folder(tmp_path: Path, source: FolderPictures) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "latents"):
        with pytest.raises(
            ValueError, match=r"prepare: out = '.*file.*' is a file or lies below one, expected a folder"
        ):
            prepare(source, PoolingConfig(), out, **SMALL)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_use(tmp_path: Path, source: FolderPictures) -> None:
    (tmp_path / "latents").mkdir()
    with (tmp_path / "latents" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is in use by another process that prepares"):
            prepare(source, PoolingConfig(), tmp_path / "latents", **SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 18}, r"size = 18, expected a multiple of 4 for pooling-"),
        ({"size": 0}, "size = 0, expected at least 1"),
        ({"shard_size": 0}, "shard_size = 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size = 0, expected at least 1"),
        ({"seed": -1}, "seed = -1, expected at least 0"),
        ({"threads": 0}, "threads = 0, expected at least 1"),
    ],
)
def test_bad_options(tmp_path: Path, source: FolderPictures, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(source, PoolingConfig(), tmp_path / "latents", **{**SMALL, **options})
    assert not (tmp_path / "latents").exists()


def test_non_finite_latents_name_the_image(tmp_path: Path, source: FolderPictures) -> None:
    Image.new("RGB", (20, 20)).save(Path(source.path) / "n0001" / "3.png")
    with pytest.raises(ValueError, match=r"non-finite latents of FolderPictures\(.*photos\): n0001/3.png"):
        prepare(source, PoolingConfig(fault="NaN"), tmp_path / "latents", **SMALL)
    assert (tmp_path / "latents" / FIRST).exists()
    assert not (tmp_path / "latents" / SECOND).exists()


def test_an_autoencoder_that_does_not_keep_its_word(tmp_path: Path, source: FolderPictures) -> None:
    message = r"latents are torch.float32 \(2, 3, 4, 4\), expected torch.float32 \(2, 4, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        prepare(source, PoolingConfig(fault="channels"), tmp_path / "latents", **SMALL)


def test_constant_channels_have_no_statistics(tmp_path: Path, source: FolderPictures) -> None:
    with pytest.raises(ValueError, match="a standard deviation is not above 0"):
        prepare(source, PoolingConfig(gain=0.0), tmp_path / "latents", sample=False, **SMALL)
    assert not (tmp_path / "latents" / "latents.json").exists()


# decoding ahead


def test_decoding_is_ahead_in_order_and_bounded() -> None:
    started, lock = [], threading.Lock()

    def read(index: int) -> IO[bytes]:
        with lock:
            started.append(index)
        return io.BytesIO(png(Image.new("RGB", (4, 4), (index, 0, 0))))

    pictures = Pictures(tuple(map(str, range(30))), np.zeros(30, np.int64), ("all",), read, "mine")
    crops = decoded(pictures, range(3, 30), 4, threads=3, ahead=5)
    assert next(crops)[0, 0, 0] == 3
    crops_left = [int(next(crops)[0, 0, 0]) for _ in range(4)]
    assert crops_left == [4, 5, 6, 7]
    crops.close()
    assert len(started) <= 5 + 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert [int(c[0, 0, 0]) for c in decoded(pictures, range(30), 4, threads=3, ahead=50)] == list(range(30))


# sources


def test_folders_are_numbered_by_sorted_name(tmp_path: Path) -> None:
    photos(tmp_path, classes=2, each=1)
    pictures = FolderPictures(str(tmp_path)).open()
    assert (pictures.files, pictures.classes) == (("n0000/0.png", "n0001/0.png"), ("n0000", "n0001"))
    assert pictures.labels.tolist() == [0, 1]
    flat = FolderPictures(str(tmp_path), classes_from_folders=False).open()
    assert (flat.classes, flat.labels.tolist(), flat.num_classes) == (("all",), [0, 0], 1)
    assert flat.fingerprint != pictures.fingerprint
    assert FolderPictures(str(tmp_path)).open().fingerprint == pictures.fingerprint


def test_an_image_is_upright_on_black_and_of_three_channels(tmp_path: Path) -> None:
    image = photo(0, 6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert picture(str(tmp_path / "turned.png"), "x").size == (4, 6)
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    clear.save(tmp_path / "clear.png")
    assert not np.asarray(picture(str(tmp_path / "clear.png"), "x")).any()
    image.convert("L").save(tmp_path / "grey.png")
    assert np.asarray(picture(str(tmp_path / "grey.png"), "x")).shape == (4, 6, 3)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"mine has over 8 bits a channel \(16\), expected 8"):
        picture(str(tmp_path / "deep.png"), "mine")
    for name in ("turned", "clear", "grey"):  # as ImageFolder treats them
        square = ImageFolder(str(tmp_path), 4, classes_from_folders=False)
        (tmp_path / "deep.png").unlink(missing_ok=True)
        files = square.open()
        pixels = centre_crop(picture(str(tmp_path / f"{name}.png"), "x"), 4).transpose(2, 0, 1)
        read = files.read(np.array([files.files.index(f"{name}.png")])).x_1[0]
        assert np.array_equal(from_bytes(pixels), read)


def test_an_image_beside_the_class_folders(tmp_path: Path) -> None:
    photos(tmp_path, classes=1, each=1)
    photo(0).save(tmp_path / "loose.png")
    with pytest.raises(
        ValueError, match=r"FolderPictures: .*/loose.png lies in no class folder, .*; move it into a class"
    ):
        source_at(str(tmp_path)).open()
    assert FolderPictures(str(tmp_path), classes_from_folders=False).open().files == ("loose.png", "n0000/0.png")


def test_crops_without_classes_are_what_prepare_encodes(source: FolderPictures) -> None:
    data, pictures = CroppedPictures(source.path, 16).open(), source.open()
    assert (len(data), data.shape, data.num_classes, data.flip) == (12, (3, 16, 16), None, False)
    batch = read_checked(data, np.array([5, 0, 11]))
    assert batch.cond is None
    for x, index in zip(batch.x_1, (5, 0, 11), strict=True):
        assert np.array_equal(from_bytes(next(decoded(pictures, [index], 16, 1, 1))), x)
    assert data.read(np.array([], np.int64)).x_1.shape == (0, 3, 16, 16)
    photo(0).save(Path(source.path) / "loose.png")
    Image.new("RGB", (9, 90)).save(Path(source.path) / "n0000" / "thin.png")
    data = CroppedPictures(source.path, 16).open()
    assert data.files[0] == "loose.png"
    with pytest.raises(ValueError, match=r"n0000/thin.png is 9 x 90, smaller than 16"):
        data.read(np.array([data.files.index("n0000/thin.png")]))
    with pytest.raises(ValueError, match="CroppedPictures: size = 0, expected an integer within"):
        CroppedPictures(source.path, 0)
    assert from_json(to_json(CroppedPictures(source.path, 4))) == CroppedPictures(source.path, 4)


def samples(n: int = 5, start: int = 0) -> dict[str, bytes]:
    members = {}
    for i in range(start, start + n):
        members[f"{i:06d}.png"] = png(photo(i))
        members[f"{i:06d}.cls"] = f"{i % 3}\n".encode()
    return members


def test_tars_give_what_folders_give(tmp_path: Path, source: FolderPictures) -> None:
    folder = source.open()
    members: dict[str, bytes] = {}
    for i, name in enumerate(folder.files):
        content = (Path(source.path) / name).read_bytes()
        label = int(folder.labels[i])
        text = {"cls": str(label).encode()} if i % 2 else {"json": json.dumps({"label": label, "w": 5}).encode()}
        members |= {f"./a/{i:04d}.png": content} | {f"./a/{i:04d}.{k}": v for k, v in text.items()}
        members |= {f"./a/{i:04d}.txt": b"caption", f"note{i}": b"none"}
    (tmp_path / "tars").mkdir()
    names = list(members)
    tar(tmp_path / "tars" / "b.tar", {name: members[name] for name in names[20:]})
    tar(tmp_path / "tars" / "a.tar", {name: members[name] for name in names[:20]})
    tars = TarPictures(str(tmp_path / "tars"))
    pictures = tars.open()
    assert pictures.files[0] == "a.tar:./a/0000.png"
    assert pictures.files[-1] == "b.tar:./a/0011.png"
    assert pictures.labels.tolist() == folder.labels.tolist()
    assert (pictures.classes, pictures.num_classes) == ((), 3)
    prepare(source, PoolingConfig(), tmp_path / "one", **SMALL)
    prepare(tars, PoolingConfig(), tmp_path / "two", **SMALL)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {k for k in one if one[k] != two[k]} == {"latents.json"}
    assert Latents(str(tmp_path / "two"), num_classes=1000).open().num_classes == 1000  # only numbers are known
    assert isinstance(source_at(str(tmp_path / "tars")), TarPictures)
    assert source_at(str(tmp_path / "tars" / "a.tar")) == TarPictures(str(tmp_path / "tars" / "a.tar"))
    assert source_at(source.path) == source
    assert to_json(tars)["path"] == tars.path


TAR_FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no image": ("a.tar: sample 000001 has no image", lambda p: tar(p, drop(samples(), "000001.png"))),
    "no label": (
        r"a.tar: sample 000004 has no label \(.cls, or .json with label\)",
        lambda p: tar(p, drop(samples(), "000004.cls")),
    ),
    "two images": (
        "sample 000000 has two images, 000000.png and 000000.jpg",
        lambda p: tar(p, {"000000.png": b"", "000000.jpg": b"", "000000.cls": b"0"}),
    ),
    "twice": (
        "a.tar: sample 000000 occurs twice",
        lambda p: tar(p, {**samples(2), "000000.jpg": b""}),
    ),
    "text": ("000002.cls holds b'cat', expected a label", lambda p: tar(p, samples() | {"000002.cls": b"cat"})),
    "negative": ("000002.cls holds b'-1', expected a label", lambda p: tar(p, samples() | {"000002.cls": b"-1"})),
    "fraction": ("000002.cls holds b'1.5', expected", lambda p: tar(p, samples() | {"000002.cls": b"1.5"})),
    "json": (
        "x.json holds b'{\"id\": 1}', expected a label",
        lambda p: tar(p, {"x.png": b"", "x.json": b'{"id": 1}'}),
    ),
    "true": ("holds b'{\"label\": true}'", lambda p: tar(p, {"x.png": b"", "x.json": b'{"label": true}'})),
    "cut in data": ("a.tar: not a whole tar archive", lambda p: shorten(tar(p, samples()), 700)),
    "cut in the first header": ("a.tar: not a whole tar archive", lambda p: shorten(tar(p, samples()), 100)),
    "cut between members": (
        "a.tar: not a whole tar archive.* without the 1024 zeros",
        lambda p: shorten(tar(p, samples()), header(p, "000002.png")),
    ),
    "cut in a header": (
        "a.tar: not a whole tar archive",
        lambda p: shorten(tar(p, samples()), header(p, "000002.png") + 100),
    ),
    "cut in the end": (
        "a.tar: not a whole tar archive.* without the 1024 zeros",
        lambda p: shorten(tar(p, samples()), header(p, "000004.cls") + 1024 + 1023),
    ),
    "changed header": (
        "a.tar: not a whole tar archive.*no header at byte",
        lambda p: put(tar(p, samples()), header(p, "000002.png") + 30, b"x"),
    ),
    "zeros in the middle": (
        "a.tar: not a whole tar archive.*no header at byte",
        lambda p: put(tar(p, samples()), header(p, "000002.png"), bytes(1024)),
    ),
    "data after the end": (
        "a.tar: not a whole tar archive.*no header at byte",
        lambda p: p.write_bytes(tar(p, samples()).read_bytes() + b"x"),
    ),
    "two labels": (
        "a.tar: sample 000002 has two labels, 2 in 000002.cls and 1 in 000002.json",
        lambda p: tar(p, beside("000002", {"000002.json": b'{"label": 1}'})),
    ),
    "a label twice": (
        "a.tar: sample 000002 has two labels, 2 in 000002.cls and 2 in 000002.CLS",
        lambda p: tar(p, beside("000002", {"000002.CLS": b"2"})),
    ),
    "highest": (
        "000002.cls holds b'2147483648', expected a label, a number from 0 to 2147483647",
        lambda p: tar(p, samples() | {"000002.cls": b"2147483648"}),
    ),
    "huge": ("000002.cls holds b'9999", lambda p: tar(p, samples() | {"000002.cls": b"9" * 5000})),
    "deep": (
        r"x.json holds b'\[\[\[\[",
        lambda p: tar(p, {"x.png": b"", "x.json": b"[" * 100_000}),
    ),
    "compressed": (
        "a.tar: not a whole tar archive, uncompressed",
        lambda p: p.write_bytes(gzip.compress(tar(p, samples()).read_bytes())),
    ),
    "empty": ("a.tar' holds no images, expected .png", lambda p: tar(p, {})),
    "absent": ("expected a tar file or a folder of", lambda p: None),
}


def drop(members: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {k: v for k, v in members.items() if k != name}


def beside(key: str, more: dict[str, bytes]) -> dict[str, bytes]:
    """The samples, with further members of one of them."""
    before, members = {k: v for k, v in samples().items() if k[:6] <= key}, samples()
    return before | more | {k: v for k, v in members.items() if k not in before}


def header(path: Path, name: str) -> int:
    """Where the header of a member begins."""
    with tarfile.open(path) as file:
        return file.getmember(name).offset


def put(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def shorten(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("fault", TAR_FAULTS)
def test_broken_tars(tmp_path: Path, fault: str) -> None:
    message, damage = TAR_FAULTS[fault]
    damage(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=message):
        TarPictures(str(tmp_path / "a.tar")).open()


def test_a_broken_image_in_a_tar_is_named(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", samples() | {"000003.png": b"no image"})
    with pytest.raises(ValueError, match=r"TarPictures\(.*\): a.tar:000003.png: unreadable image"):
        prepare(TarPictures(str(tmp_path / "a.tar")), PoolingConfig(), tmp_path / "out", **SMALL)
    with pytest.raises(ValueError, match="unreadable image") as error:
        TarPictures(str(tmp_path / "a.tar")).open().image(3)
    assert "BytesIO" not in str(error.value)


def test_a_tar_may_end_where_its_zeros_do_or_later(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", samples())
    end = header(path, "000004.cls") + 1024
    for size in (end + 1024, end + 1025, end + 30_000):
        path.write_bytes(path.read_bytes()[:end] + bytes(size - end))
        assert len(TarPictures(str(path)).open()) == 5


def test_two_labels_that_agree_and_json_that_holds_none(tmp_path: Path) -> None:
    for text in (b'{"label": 2}', b'{"label": "cat"}', b'{"id": 7}'):
        for first in (0, 1):
            both = {"x.cls": b"2", "x.json": text}
            members = {"x.png": b""} | dict(list(both.items())[:: -1 if first else 1])
            assert TarPictures(str(tar(tmp_path / "a.tar", members))).open().labels.tolist() == [2]


# verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    prepare(FolderPictures(str(photos(folder / "photos"))), PoolingConfig(), folder / "latents", **SMALL)
    return folder / "latents"


def test_verify_reports(made: Path, tmp_path: Path) -> None:
    report = verify(made)
    statistics = Latents(str(made), num_classes=3).open().statistics
    assert (report.n, report.shards, report.shape, report.dtype) == (12, 3, (4, 4, 4), "F32")
    assert (report.labels, report.manifest) == ((0, 2), True)
    np.testing.assert_allclose(report.mean, statistics.mean, atol=1e-6)
    np.testing.assert_allclose(report.std, statistics.std, rtol=1e-6)
    stored = latents(tmp_path, dtype=torch.bfloat16)
    report = verify(tmp_path)
    assert (report.n, report.dtype, report.labels, report.manifest) == (8, "BF16", (0, 7), False)
    both = torch.cat([stored["latents"], stored["latents_flip"]]).double()
    np.testing.assert_allclose(report.std, both.std((0, 2, 3), correction=0), rtol=1e-9)
    for name in (FIRST, SECOND):
        change(tmp_path / name, latents_flip=None)
    np.testing.assert_allclose(verify(tmp_path).mean, stored["latents"].double().mean((0, 2, 3)), rtol=1e-9)


def scaled_statistics(folder: Path) -> None:
    """Statistics that are off, with a manifest that believes them."""
    path = folder / "latents_stats.pt"
    both = torch.load(path, weights_only=True)
    torch.save({"mean": both["mean"], "std": both["std"] * 1.001}, path)
    edit_manifest(folder, lambda content: content.update(statistics=load_statistics(path).fingerprint))


def scale_up(values: list[float]) -> None:
    """The last one by a millionth."""
    values[-1] *= 1 + 1e-6


def poked(file: Path) -> None:
    """One bit of the last label's neighbour changed: nothing but the digest sees it."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def with_value(file: Path, name: str, value: float, row: int) -> None:
    x = load_file(file)[name]
    x[row] = value
    change(file, **{name: x})


def edit_manifest(folder: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads((folder / "latents.json").read_text())
    edit(content)
    content.pop("digest", None)  # as the first version wrote it
    (folder / "latents.json").write_text(json.dumps(content))


VERIFY_FAULTS: dict[str, tuple[tuple[str, ...], Callable[[Path], object]]] = {
    "missing": ((f"1 shards missing: {FIRST}", "7 samples of"), lambda f: (f / FIRST).unlink()),
    "too many": (
        ("does not name: latents_z.safetensors",),
        lambda f: shutil.copy(f / FIRST, f / "latents_z.safetensors"),
    ),
    "size": ((f"{FIRST}: 3 bytes, expected", "not a whole safetensors"), lambda f: (f / FIRST).write_bytes(b"abc")),
    "a bit": ((f"{SECOND}: 5 samples, sha256 ",), lambda f: poked(f / SECOND)),
    "NaN": (
        ("non-finite values in row 1 of latents_flip",),
        lambda f: with_value(f / SECOND, "latents_flip", torch.nan, 1),
    ),
    "infinity": (("non-finite values in row 4 of latents",), lambda f: with_value(f / SECOND, "latents", torch.inf, 4)),
    "label": (("row 2 has label 3, expected one within [0, 3)",), lambda f: with_value(f / FIRST, "labels", 3, 2)),
    "negative label": (("row 0 has label -1",), lambda f: with_value(f / FIRST, "labels", -1, 0)),
    "shape": (
        (
            "latents are F32 (4, 4, 5) with latents_flip, expected F32 (4, 4, 4) with",
            "12 samples of (4, 4, 4) and (4, 4, 5), expected 12 of (4, 4, 4)",
        ),
        lambda f: change(f / SECOND, latents=torch.zeros(5, 4, 4, 5), latents_flip=torch.zeros(5, 4, 4, 5)),
    ),
    "flip": (("(4, 4, 4) without latents_flip, expected",), lambda f: change(f / SECOND, latents_flip=None)),
    "no statistics": (("latents_stats.pt: there is no such file",), lambda f: (f / "latents_stats.pt").unlink()),
    "other statistics": (
        ("latents_stats.pt: statistics of another data set",),
        lambda f: torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, f / "latents_stats.pt"),
    ),
    "channels": (
        ("latents_stats.pt is of 3 channels, the latents beside it have 4",),
        lambda f: torch.save({"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, f / "latents_stats.pt"),
    ),
    "wrong statistics": (("differs from the statistics of the latents by 1.0e-03",), scaled_statistics),
    "type": (
        ("latents are F32, expected F16 by latents.json",),
        lambda f: edit_manifest(f, lambda m: m.update(dtype="F16")),
    ),
    "classes": (
        ("latents.json: num_classes = 4, expected 3 as classes",),
        lambda f: edit_manifest(f, lambda m: m.update(num_classes=4)),
    ),
    "sum": (
        (f"{SECOND}: sum and squares of the latents are not those in latents.json",),
        lambda f: edit_manifest(f, lambda m: scale_up(m["shards"][1]["sum"])),
    ),
    "squares": (
        (f"{SECOND}: sum and squares of the latents are not those in latents.json",),
        lambda f: edit_manifest(f, lambda m: scale_up(m["shards"][1]["squares"])),
    ),
    "channels of sums": (
        (f"{FIRST}: sum and squares of the latents are not those in latents.json",),
        lambda f: edit_manifest(f, lambda m: (m["shards"][0]["sum"].pop(), m["shards"][0]["squares"].pop())),
    ),
    "record twice": (
        (f"latents.json: names {FIRST} twice",),
        lambda f: edit_manifest(f, lambda m: m["shards"].append(m["shards"][0])),
    ),
    "not finished": (
        ("preparation not finished (12 of 12 samples): run facm latents encode again",),
        lambda f: (f / "latents.json").unlink(),
    ),
    "nothing": (
        ("expected latents_*.safetensors", "3 shards missing"),
        lambda f: [p.unlink() for p in f.glob("*.safetensors")],
    ),
    "several": (
        ("row 2 has label 3", "non-finite values in row 1 of latents", "there is no such file"),
        lambda f: (
            with_value(f / FIRST, "labels", 3, 2),
            with_value(f / SECOND, "latents", torch.nan, 1),
            (f / "latents_stats.pt").unlink(),
        ),
    ),
}


@pytest.mark.parametrize("fault", VERIFY_FAULTS)
def test_verify_lists_all_that_is_wrong(made: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "latents"
    shutil.copytree(made, folder)
    messages, damage = VERIFY_FAULTS[fault]
    damage(folder)
    with pytest.raises(ValueError, match="latents") as error:
        verify(folder)
    for message in messages:
        assert message in str(error.value)


def test_verify_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an existing folder"):
        verify(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no latents"):
        verify(tmp_path)


def test_the_tests_autoencoder_keeps_the_protocol() -> None:
    assert isinstance(PoolingConfig(), AutoencoderConfig)

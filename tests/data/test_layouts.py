"""Which class an image is of: by EDM's dataset.json, numbered folders, classes.txt; in a folder and in a zip."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import facm
from facm import FlowMatching, Intervals, Labels, Run
from facm.core.state_dict import CheckpointError
from facm.data import FolderPictures, ImageFolder
from facm.data.loader import batches
from facm.data.places import Zipped
from facm.data.stream import Stream
from facm.networks import LightningDiT

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
EDM = [f"0000{k // 4}/img{k:08d}.png" for k in range(6)]


def written(root: Path, files: list[str], texts: dict[str, str], zipped: bool) -> str:
    """Images and texts in the folder ``root``, or in a zip of that name, last entry first."""
    for k, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[k]).save(root / file)
    for name, text in texts.items():
        (root / name).write_text(text)
    if not zipped:
        return str(root)
    with zipfile.ZipFile(f"{root}.zip", "w") as archive:
        for path in sorted(root.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(root))
        archive.writestr("__MACOSX/._a.png", b"no image")
    return f"{root}.zip"


def labels_json(labels: object) -> dict[str, str]:
    return {"dataset.json": json.dumps({"labels": labels})}


@pytest.mark.parametrize("zipped", [False, True])
def test_edms_layout(tmp_path: Path, zipped: bool) -> None:
    labels = [3, 0, 1, 1, 0, 3]
    texts = labels_json([[file.replace("/", "\\"), label] for file, label in zip(EDM, labels, strict=True)][::-1])
    path = written(tmp_path / "edm", EDM, texts, zipped)
    data = ImageFolder(path, size=4).open()
    assert data.files == tuple(EDM)
    assert (data.num_classes, data.classes) == (4, ())
    batch = data.read(np.array([5, 0, 2]))
    assert batch.cond is not None
    assert batch.cond.tolist() == [3, 3, 1]
    assert np.array_equal(((batch.x_1.numpy() + 1) * 127.5).round(), IMAGES[[5, 0, 2]].transpose(0, 3, 1, 2))
    assert ImageFolder(path, size=4, classes_from_folders=False).open().num_classes is None
    pictures = FolderPictures(path).open()
    assert (pictures.labels.tolist(), pictures.num_classes) == (labels, 4)
    assert np.array_equal(np.asarray(pictures.image(4)), IMAGES[4])


@pytest.mark.parametrize("labels", [None, [[file, None] for file in EDM]])
@pytest.mark.parametrize("zipped", [False, True])
def test_null_labels_are_no_classes(tmp_path: Path, zipped: bool, labels: object) -> None:
    path = written(tmp_path / "edm", EDM, labels_json(labels), zipped)
    assert ImageFolder(path, size=4).open().num_classes is None
    assert FolderPictures(path).open().classes == ("all",)


ALL = [[file, 0] for file in EDM]
WRONG = {
    "no json": ({"dataset.json": "{"}, r"dataset\.json is not JSON"),
    "no labels": ({"dataset.json": "{}"}, r'dataset\.json has no "labels", expected .*rename it'),
    "no list": (labels_json({"a": 1}), r'dataset\.json: "labels" is .*expected a list'),
    "no pair": (labels_json([*ALL, ["x"]]), r"dataset\.json: entry 6 is \['x'\], expected"),
    "no number": (labels_json([[EDM[0], "cat"], *ALL[1:]]), r"entry 0, '00000/img0+\.png', has the label 'cat'"),
    "negative": (labels_json([[EDM[0], -1], *ALL[1:]]), r"has the label -1, expected"),
    "one-hot": (labels_json([[EDM[0], [0.0, 1.0]], *ALL[1:]]), r"has the label \[0\.0, 1\.0\], expected"),
    "huge": (labels_json([[EDM[0], 2**40], *ALL[1:]]), "has the label 1099511627776, expected"),
    "one null": (labels_json([*ALL[:-1], [EDM[-1], None]]), r"img0+5\.png has no label: .*labels it null"),
    "an image without": (labels_json(ALL[:-1]), r"img0+5\.png has no label: .*has no entry for it"),
    "an entry without": (labels_json([*ALL, ["gone.png", 0]]), r"dataset\.json names 'gone\.png', which is not there"),
    "twice": (labels_json([*ALL, ALL[0]]), r"entry 6 names '00000/img0+\.png' again"),
    "line twice": ({"classes.txt": "00000\n00001\n00000\n"}, r"classes\.txt: line 3 has '00000' twice"),
    "empty line": ({"classes.txt": "00000\n\n00001\n"}, r"classes\.txt: line 2 is empty"),
    "not named": ({"classes.txt": "00000\n"}, r"classes\.txt does not name the class folder '00001'"),
    "no text": ({"classes.txt": "00000\n\udcff"}, r"classes\.txt is not text in UTF-8"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("fault", WRONG)
def test_what_does_not_fit_is_named(tmp_path: Path, fault: str, zipped: bool) -> None:
    texts, message = WRONG[fault]
    root = tmp_path / "edm"
    root.mkdir()
    for name, text in texts.items():
        (root / name).write_bytes(text.encode(errors="surrogateescape"))
    path = written(root, EDM, {}, zipped)
    with pytest.raises(ValueError, match=message):
        ImageFolder(path, size=4).open()


@pytest.mark.parametrize("zipped", [False, True])
def test_class_folders_in_order(tmp_path: Path, zipped: bool) -> None:
    def classes(name: str, folders: list[str], texts: dict[str, str]) -> tuple[tuple[str, ...], list[int]]:
        files = [f"{folder}/a.png" for folder in folders]
        data = ImageFolder(written(tmp_path / name, files, texts, zipped), size=4).open()
        assert data.labels is not None
        assert data.num_classes == len(data.classes)
        return data.classes, [int(data.labels[data.files.index(file)]) for file in files]

    numbers = [str(k) for k in range(12)]
    assert classes("numbers", numbers, {}) == (tuple(numbers), list(range(12)))
    assert classes("padded", ["007", "10", "9"], {}) == (("007", "9", "10"), [0, 2, 1])
    assert classes("mixed", ["10", "9", "x"], {}) == (("10", "9", "x"), [0, 1, 2])
    dotted = ["b.10", "b.9", "a.v1.2"]
    assert classes("dotted", dotted, {}) == (("a.v1.2", "b.10", "b.9"), [1, 2, 0])
    listed = classes("listed", ["cat", "dog"], {"classes.txt": "dog\r\nowl\r\ncat\n"})
    assert listed == (("dog", "owl", "cat"), [2, 0])


def test_a_zip_is_read_by_copies_and_in_other_processes(tmp_path: Path) -> None:
    path = written(tmp_path / "x", EDM, labels_json(ALL), True)
    place = pickle.loads(pickle.dumps(Zipped(Path(path))))
    assert place.files == tuple(EDM)
    assert place.size(EDM[1]) > 0
    data = ImageFolder(path, size=4, flip=False).open()
    assert data.fingerprint == ImageFolder(str(tmp_path / "x"), size=4).open().fingerprint
    here = list(batches(Stream(data, 0, 4), 0, 40))
    for mine, theirs in zip(here, batches(Stream(data, 0, 4), 0, 40, workers=2), strict=True):
        assert torch.equal(mine.x_1, theirs.x_1)
    (tmp_path / "none.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"none\.zip: not a whole zip archive"):
        ImageFolder(str(tmp_path / "none.zip"), size=4).open()
    with pytest.raises(ValueError, match="expected an existing folder or zip archive"):
        ImageFolder(str(tmp_path / "absent.zip"), size=4).open()


@pytest.mark.slow
def test_a_run_of_the_order_of_text_does_not_go_on_in_the_order_of_numbers(tmp_path: Path, monkeypatch) -> None:
    files = [f"{k}/a.png" for k in range(12)]
    path = written(tmp_path / "numbers", files, {}, False)
    network = LightningDiT(
        input_size=4, in_channels=3, patch_size=2, hidden_size=16, depth=1, num_heads=2, num_classes=12
    )

    def stop(record: object) -> None:
        raise facm.StopTraining

    monkeypatch.setattr("facm.data.classes.in_order", lambda names: tuple(sorted(names)))  # as versions before had it
    before = ImageFolder(path, 4).open()
    assert before.classes[:3] == ("0", "1", "10")
    run = Run(network, ImageFolder(path, 4), FlowMatching(Labels(12)), 32, 8, every=Intervals(log=8))
    facm.train(run, tmp_path / "run", callbacks=[stop], quiet=True)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"fingerprint .* class folders named by numbers .*classes\.txt"):
        facm.resume(tmp_path / "run", quiet=True)
    (tmp_path / "numbers" / "classes.txt").write_text("\n".join(before.classes))
    assert ImageFolder(path, 4).open().fingerprint == before.fingerprint
    assert facm.resume(tmp_path / "run", quiet=True).images_seen == 32

"""Prompts and pictures as people bring them: read in all layouts, and every fault said with its place."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from facm.core.untrusted.picture import size_of
from facm.foundation.prepare.sizes import buckets, in_buckets, one_size, same_size
from facm.foundation.prepare.sources import source_at
from tests.foundation.prepared_parts import SIZES, photos


def text(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_file_of_prompts(tmp_path: Path) -> None:
    source = source_at(text(tmp_path / "p.txt", "\ufeffa red fox\r\n\n  ein Fuchs, müde \n\nlast"))
    assert source.prompts == ("a red fox", "ein Fuchs, müde", "last")
    assert (source.skipped, source.pictures, source.name) == (2, None, str(tmp_path / "p.txt"))
    assert source.fingerprint != source_at(text(tmp_path / "q.txt", "a red foxein Fuchs, müde\n")).fingerprint
    assert source_at(text(tmp_path / "without_suffix", "one\ntwo\n")).prompts == ("one", "two")


def test_json_lines(tmp_path: Path) -> None:
    lines = [{"prompt": "a fox"}, {"prompt": " seven ", "image": None, "more": 1}]
    source = source_at(text(tmp_path / "p.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n"))
    assert source.prompts == ("a fox", "seven")
    assert source.skipped == 1
    assert source.pictures is None


def test_json_lines_with_pictures(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    lines = [{"prompt": f"picture {i}", "image": f"photos/{'ab'[i % 2]}/{i}.png"} for i in (3, 0)]
    source = source_at(text(tmp_path / "p.jsonl", "\n".join(map(json.dumps, lines))))
    assert source.prompts == ("picture 3", "picture 0")
    assert source.pictures is not None
    assert [source.pictures.image(i).size for i in range(2)] == [SIZES[3], SIZES[0]]


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def packed(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_folders_and_tars(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    text(folder / ".hidden" / "x.png", b"")
    text(folder / "a" / "notes.md", "not looked at")
    source = source_at(folder)
    assert source.prompts == tuple(f"picture {i}" for i in (0, 2, 4, 1, 3, 5))
    assert source.pictures is not None
    assert source.pictures.files[:2] == ("a/0.png", "a/2.png")
    members = {name: content for name, content in packed(folder).items() if not name.startswith(".")}
    for where in (tar(tmp_path / "all.tar", members), tmp_path / "tars"):
        if where.name == "tars":
            where.mkdir()
            for letter in "ab":
                some = {name: content for name, content in members.items() if name.startswith(letter)}
                tar(where / f"{letter}.tar", some)
        found = source_at(where)
        assert found.prompts == source.prompts
        assert found.pictures is not None
        for i in range(6):
            assert found.pictures.image(i).tobytes() == source.pictures.image(i).tobytes()


FAULTS = {
    "empty": ("p.txt", "", "p.txt holds no prompts"),
    "only empty lines": ("p.txt", "\n \n", r"holds no prompts, expected one on each line"),
    "not UTF-8": ("p.txt", b"fine\nf\xfcr\n", "p.txt, line 2, is not text in UTF-8"),
    "json": ("p.jsonl", '{"prompt": "a"}\n{', "p.jsonl, line 2, is not JSON"),
    "no prompt": ("p.jsonl", '{"text": "a"}', "line 1: prompt = None, expected text"),
    "empty prompt": ("p.jsonl", '{"prompt": " "}', "line 1: prompt = ' ', expected text"),
    "a list": ("p.jsonl", "[]", "line 1: prompt = None"),
    "image a number": ("p.jsonl", '{"prompt": "a", "image": 3}', "line 1: image = 3, expected the path"),
    "image missing": ("p.jsonl", '{"prompt": "a", "image": "x.png"}', "1 pictures are not there: x.png"),
    "not on all lines": (
        "p.jsonl",
        '{"prompt": "a", "image": "x.png"}\n{"prompt": "b"}',
        r"1 prompts without an image \(line 2\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_files(tmp_path: Path, fault: str) -> None:
    name, content, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        source_at(text(tmp_path / name, content))


def test_faults_of_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone is not there, expected a text file of prompts"):
        source_at(tmp_path / "gone")
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"photos holds no pictures"):
        source_at(folder)
    photos(folder)
    (folder / "a" / "0.txt").unlink()
    (folder / "b" / "1.png").unlink()
    message = r"1 pictures without a caption: a/0.png; 1 captions without a picture: b/1.txt; expected"
    with pytest.raises(ValueError, match=message):
        source_at(folder)
    with pytest.raises(ValueError, match=message):
        source_at(tar(tmp_path / "all.tar", packed(folder)))
    for name in ("a/0.png", "b/1.txt"):
        (folder / name).unlink()
    (folder / "a" / "2.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"a/2.txt is not text in UTF-8"):
        source_at(folder)
    with pytest.raises(ValueError, match=r"a/2.txt is not text in UTF-8"):
        source_at(tar(tmp_path / "all.tar", packed(folder)))
    text(folder / "a" / "2.txt", " \n")
    with pytest.raises(ValueError, match=r"1 captions are empty: a/2.txt"):
        source_at(folder)
    text(folder / "a" / "2.jpg", b"")
    with pytest.raises(ValueError, match=r"a/2.jpg and a/2.png have one name|a/2.png and a/2.jpg have one name"):
        source_at(folder)
    (tmp_path / "all.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"all.tar: not a whole tar archive"):
        source_at(tmp_path / "all.tar")


def test_sizes_are_read_off_headers_upright(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.png")
    assert size_of(str(tmp_path / "turned.jpg"), "turned") == (40, 20)
    assert size_of(str(tmp_path / "plain.png"), "plain") == (20, 40)
    with (tmp_path / "plain.png").open("rb") as file:
        assert size_of(file, "plain") == (20, 40)
    with pytest.raises(ValueError, match=r"bad: unreadable image \(no PNG"):
        size_of(str(text(tmp_path / "bad.png", b"nothing")), "bad")


def test_buckets_have_about_one_area_and_cover_the_ratios() -> None:
    for side, multiple in ((1024, 16), (512, 32), (48, 16), (16, 16)):
        found = buckets(side, multiple)
        assert (side // multiple * multiple,) * 2 in found
        for height, width in found:
            assert height % multiple == width % multiple == 0
            assert max(height, width) <= 2 * min(height, width)
            assert abs(height * width - side**2) <= side * multiple
            assert (width, height) in found
    assert 8 <= len(buckets(1024, 16)) <= 32
    with pytest.raises(ValueError, match="size = 8, expected at least 16"):
        buckets(8, 16)


def test_pictures_go_where_they_are_cut_least() -> None:
    plan = in_buckets([(480, 640), (1000, 1000), (640, 480), (2000, 1990), (90, 1000)], 512, 16)
    ratios = {i: plan.sizes[k] for k, i in _places(plan.order, plan.counts)}
    assert ratios[1] == ratios[3] == (512, 512)
    assert plan.sizes[0] == (512, 512)  # that with most pictures first
    assert abs(ratios[0][0] / ratios[0][1] - 0.75) < 0.1
    assert ratios[2] == ratios[0][::-1]
    assert ratios[4][1] > 1.8 * ratios[4][0]
    assert plan.enlarged == 1
    assert sorted(plan.order) == list(range(5))


def _places(order: tuple[int, ...], counts: tuple[int, ...]) -> list[tuple[int, int]]:
    buckets_of = [k for k, n in enumerate(counts) for _ in range(n)]
    return list(zip(buckets_of, order, strict=True))


def test_one_size_for_all() -> None:
    assert same_size([(32, 48)] * 3, 16) == one_size(3, 32, 48, 16)
    with pytest.raises(ValueError, match=r"have 2 sizes, such as 32 x 48 \(2\), 48 x 32 \(1\)"):
        same_size([(32, 48), (48, 32), (32, 48)], 16)
    with pytest.raises(ValueError, match=r"size = 30 x 48 \(height x width\), expected multiples of 16"):
        same_size([(30, 48)], 16)

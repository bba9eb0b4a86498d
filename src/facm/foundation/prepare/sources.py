"""What people bring: a file of prompts, pictures or clips with their captions beside them, or JSON lines of both."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

import numpy as np

from facm.core import ffmpeg
from facm.core.untrusted.door import open_regular, parse_json, read_bytes
from facm.core.untrusted.picture import MOST_BYTES, size_of
from facm.core.untrusted.tar import Damaged, members
from facm.core.untrusted.video import CONTAINERS
from facm.data.pictures import Pictures
from facm.data.places import SUFFIXES
from facm.data.webdataset import tar_files
from facm.foundation.prepare.clips import Clips, frames_in, is_video_file

MOST_TEXT = 2**30
"""Bytes of a file of prompts."""
MOST_CAPTION = 2**20
"""Bytes of one caption."""
PICTURES = ("pictures", "picture", ", ".join(SUFFIXES))
CLIPS = ("clips", "clip", f"{', '.join(CONTAINERS)}, or folders of frames")
LAYOUTS = (
    "a text file of prompts, JSON lines (.jsonl), a folder of pictures with a .txt beside each, or a tar file, "
    "or a folder of tar files, of the same"
)


@dataclass(frozen=True, eq=False)
class Source:
    """Prompts, and their pictures where there are some.

    prompts: the texts.
    pictures: as many, or clips; None for prompts alone.
    name: the source's name in error messages.
    skipped: number of empty lines.
    """

    prompts: tuple[str, ...]
    pictures: Pictures | Clips | None
    name: str
    skipped: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: a hash of the prompts and the pictures' names, but not of the pictures themselves."""
        digest = hashlib.sha256()
        for text in (*self.prompts, "", *(self.pictures.files if self.pictures else ())):
            encoded = text.encode(errors="surrogateescape")
            digest.update(f"{len(encoded)} ".encode() + encoded)
        return digest.hexdigest()[:16]


def source_at(path: Path, clips: bool = False) -> Source:
    """The source at ``path``; its kind shows in its name. No picture is read yet.

    clips: whether a folder or JSON lines hold clips, video files and folders of frames, in place of pictures.
    Raises ValueError naming what is not there, empty, or not UTF-8, a picture without a caption, or a caption without a
    picture.
    """
    path = path.expanduser()
    if not path.exists():
        raise ValueError(f"{path} is not there, expected {LAYOUTS}")
    if tars := tar_files(path):
        if clips:
            raise ValueError(f"{path} is a tar file, or a folder of them; expected a folder of clips, or JSON lines")
        return _tars(path, tars)
    if path.is_dir():
        return _clip_folder(path) if clips else _folder(path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _json_lines(path, "video" if clips else "image")
    return _prompts(path)


def _prompts(path: Path) -> Source:
    """One prompt a line."""
    lines = list(_lines(path))
    prompts = tuple(line for _, line in lines if line)
    if not prompts:
        raise ValueError(f"{path} holds no prompts, expected one on each line")
    return Source(prompts, None, f"{path}", len(lines) - len(prompts))


def _json_lines(path: Path, kind: Literal["image", "video"] = "image") -> Source:
    """An object with a prompt, and perhaps an image or a video, a path that is relative to the file's folder, on each
    line; a video may be a folder of frames."""
    prompts, files, skipped, without = list[str](), list[str](), 0, list[int]()
    for number, line in _lines(path):
        if not line:
            skipped += 1
            continue
        said = parse_json(line, f"{path}, line {number},")
        prompt = said.get("prompt") if isinstance(said, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(
                f'{path}, line {number}: prompt = {prompt!r:.60}, expected text, as in {{"prompt": "a fox"}}'
            )
        image = said.get(kind)
        if image is None:
            without.append(number)
        elif not isinstance(image, str) or not image:
            raise ValueError(f"{path}, line {number}: {kind} = {image!r:.60}, expected the path of one")
        else:
            files.append(image)
        prompts.append(prompt.strip())
    if not prompts:
        raise ValueError(f"{path} holds no prompts, expected one object on each line")
    if not files:
        return Source(tuple(prompts), None, f"{path}", skipped)
    if without:
        listed, article = _some([f"line {number}" for number in without]), "an" if kind == "image" else "a"
        raise ValueError(
            f"{path}: {len(without)} prompts without {article} {kind} ({listed}), expected one on all lines or none"
        )
    if kind == "video":
        return Source(tuple(prompts), _clips(path.parent, files, str(path)), f"{path}", skipped)
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        raise ValueError(f"{path}: {len(missing)} pictures are not there: {_some(missing)}")
    return Source(tuple(prompts), _in_folder(str(path.parent), tuple(files), str(path)), f"{path}", skipped)


def _folder(path: Path) -> Source:
    """Pictures anywhere below a folder, each with a .txt of the same stem beside it."""
    pictures, captions = dict[str, str](), set[str]()
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(path)
        for name in sorted(name for name in names if not name.startswith(".")):
            stem, suffix = os.path.splitext((relative / name).as_posix())
            if suffix.lower() in SUFFIXES:
                _add(pictures, stem, stem + suffix, str(path))
            elif suffix.lower() == ".txt":
                captions.add(stem + suffix)
    texts = {os.path.splitext(file)[0]: file for file in sorted(captions)}
    if clips := [name for name in texts.keys() - pictures.keys() if _is_clip(path / name)]:
        raise ValueError(
            f"{path}: {texts[min(clips)]} is the caption of a clip; expected a number of frames above 1, or no clips"
        )
    stems = _paired(str(path), pictures, texts)
    files = tuple(pictures[stem] for stem in stems)
    prompts = [_caption(read_bytes(path / texts[stem], MOST_CAPTION), f"{path / texts[stem]}") for stem in stems]
    _check_said(str(path), prompts, [texts[stem] for stem in stems])
    return Source(tuple(prompts), _in_folder(str(path), files, str(path)), f"{path}")


def _clip_folder(path: Path) -> Source:
    """Video files and folders of frames anywhere below a folder, each with a .txt of its name beside it."""
    clips, texts = dict[str, str](), dict[str, str]()
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(path)
        if folder != str(path) and frames_in(Path(folder)):
            _add(clips, relative.as_posix(), relative.as_posix(), str(path))
            continue
        for name in sorted(name for name in names if not name.startswith(".")):
            stem, suffix = os.path.splitext((relative / name).as_posix())
            if is_video_file(name):
                _add(clips, stem, stem + suffix, str(path))
            elif suffix.lower() == ".txt":
                texts[stem] = stem + suffix
    stems = _paired(str(path), clips, texts, CLIPS)
    prompts = [_caption(read_bytes(path / texts[stem], MOST_CAPTION), f"{path / texts[stem]}") for stem in stems]
    _check_said(str(path), prompts, [texts[stem] for stem in stems])
    return Source(tuple(prompts), _clips(path, [clips[stem] for stem in stems], str(path)), f"{path}")


def _is_clip(path: Path) -> bool:
    """Whether ``path`` is a folder, or a video file but for its suffix."""
    return path.is_dir() or any(path.with_name(path.name + suffix).is_file() for suffix in CONTAINERS)


def _clips(root: Path, files: Sequence[str], name: str) -> Clips:
    """Raises ValueError for what is neither a video file nor a folder of frames, and for videos without ffmpeg."""
    wrong = [
        file
        for file in files
        if not ((root / file).is_file() if is_video_file(file) else (root / file).is_dir() and frames_in(root / file))
    ]
    if wrong:
        raise ValueError(f"{name}: {len(wrong)} are neither a video nor a folder of frames: {_some(wrong)}")
    videos = [file for file in files if is_video_file(file)]
    if videos and ffmpeg.program() is None:
        raise ValueError(
            f"{name}: reading {len(videos)} video files, such as {videos[0]}, needs ffmpeg, and there is none: "
            f"{ffmpeg.HOW}, or bring folders of frames"
        )
    return Clips(root, tuple(files), name)


def sizes_of(pictures: Pictures | Clips) -> list[tuple[int, int]]:
    """(height, width) in pixels of each picture, or of each clip's first frame."""
    if isinstance(pictures, Clips):
        return [pictures.size(i) for i in range(len(pictures.files))]
    return [size_of(pictures.read(i), f"{pictures.name}: {pictures.files[i]}") for i in range(len(pictures))]


def _in_folder(root: str, files: tuple[str, ...], name: str) -> Pictures:
    return _pictures(files, lambda index: os.path.join(root, files[index]), name)


def _tars(path: Path, tars: Sequence[Path]) -> Source:
    """Pictures in tar files, each with a .txt of the same stem in the same file."""
    names, prompts, spans = list[str](), list[str](), list[tuple[int, int, int]]()
    for k, tar in enumerate(tars):
        pictures, texts, places, said = (
            dict[str, str](),
            dict[str, str](),
            dict[str, tuple[int, int]](),
            dict[str, bytes](),
        )
        for name, offset, size, content in _members(tar):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                if size > MOST_BYTES:
                    raise ValueError(f"{tar}: {name} has {size} bytes, expected at most {MOST_BYTES}")
                _add(pictures, stem, name, str(tar))
                places[stem] = (offset, size)
            elif suffix.lower() == ".txt":
                _add(texts, stem, name, str(tar))
                said[stem] = content
        for stem in _paired(str(tar), pictures, texts):
            names.append(f"{tar.name}:{pictures[stem]}")
            prompts.append(_caption(said[stem], f"{tar}: {texts[stem]}"))
            spans.append((k, *places[stem]))
    _check_said(str(path), prompts, names)

    def read(index: int) -> IO[bytes]:
        k, offset, size = spans[index]
        with open_regular(tars[k]) as file:
            return io.BytesIO(os.pread(file.fileno(), size, offset))

    return Source(tuple(prompts), _pictures(tuple(names), read, str(path)), f"{path}")


def _members(path: Path) -> Iterator[tuple[str, int, int, bytes]]:
    """Name, place and size of each regular file that is not hidden, with its content where that is a caption."""
    try:
        with open_regular(path) as file:
            for member in members(file, os.fstat(file.fileno()).st_size):
                if member.name.rpartition("/")[2].startswith("."):
                    continue
                content = b""
                if member.name.lower().endswith(".txt"):
                    file.seek(member.offset)
                    content = file.read(min(member.size, MOST_CAPTION + 1))
                    if len(content) > MOST_CAPTION:
                        raise Damaged(f"{member.name} has {member.size} bytes, expected at most {MOST_CAPTION}")
                yield member.name, member.offset, member.size, content
    except (Damaged, OSError) as error:
        raise ValueError(f"{path}: not a whole tar archive, uncompressed ({error})") from error


def _pictures(files: tuple[str, ...], read: Callable[[int], str | IO[bytes]], name: str) -> Pictures:
    return Pictures(files, np.zeros(len(files), np.int64), ("all",), read, name)


def _add(found: dict[str, str], stem: str, name: str, where: str) -> None:
    if stem in found:
        raise ValueError(f"{where}: {found[stem]} and {name} have one name, expected one of them")
    found[stem] = name


def _paired(
    where: str, pictures: dict[str, str], texts: dict[str, str], kind: tuple[str, str, str] = PICTURES
) -> list[str]:
    """The stems of pictures and captions, sorted. Raises ValueError where they are not the same.

    kind: what the pictures are, many and one, and how they are recognised.
    """
    bare, lonely = sorted(pictures.keys() - texts.keys()), sorted(texts.keys() - pictures.keys())
    if not pictures:
        raise ValueError(f"{where} holds no {kind[0]}, expected {kind[2]}, each with a .txt beside it")
    faults = []
    if bare:
        faults.append(f"{len(bare)} {kind[0]} without a caption: {_some([pictures[stem] for stem in bare])}")
    if lonely:
        faults.append(f"{len(lonely)} captions without a {kind[1]}: {_some([texts[stem] for stem in lonely])}")
    if faults:
        raise ValueError(f"{where}: {'; '.join(faults)}; expected a .txt with the name of each")
    return sorted(pictures)


def _check_said(where: str, prompts: Sequence[str], names: Sequence[str]) -> None:
    empty = [name for name, prompt in zip(names, prompts, strict=True) if not prompt]
    if empty:
        raise ValueError(f"{where}: {len(empty)} captions are empty: {_some(empty)}; expected what the pictures show")


def _caption(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not text in UTF-8 ({error.reason} at byte {error.start})") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number of each line, from 1, and its text without spaces around it."""
    content = read_bytes(path, MOST_TEXT).removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
        try:
            yield number, line.decode().strip()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}, is not text in UTF-8 ({error.reason} at byte {error.start} of the line)"
            ) from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

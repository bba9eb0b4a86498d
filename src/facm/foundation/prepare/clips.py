"""Clips: video files, read by ffmpeg, and folders of frames, of which the first frames are taken."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from facm.core.untrusted.picture import picture, size_of
from facm.core.untrusted.video import CONTAINERS, frames_of
from facm.data.places import SUFFIXES

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Clips:
    """N clips, read one at a time.

    root: the folder that they lie in.
    files: name of each, relative to it: a video file, or a folder of frames, which are taken in the order of the
        numbers in their names.
    name: the source's name in error messages.
    """

    root: Path
    files: tuple[str, ...]
    name: str

    @cached_property
    def _pictures(self) -> dict[str, tuple[str, ...]]:
        """Folder of frames -> its pictures."""
        return {name: frames_in(self.root / name) for name in self.files if not is_video_file(name)}

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of the first frame."""
        name = self.files[index]
        if name in self._pictures:
            first = str(self.root / name / self._pictures[name][0])
            return size_of(first, f"{self.name}: {name}")
        first_frame = next(frames_of(self.root / name, 1))
        return first_frame.height, first_frame.width

    def check(self, frames: int) -> None:
        """Raise ValueError for folders that have not so many frames; how many a video file has shows when it is
        read."""
        short = [f"{name} ({len(has)})" for name, has in self._pictures.items() if len(has) < frames]
        if short:
            listed = ", ".join(short[:5]) + (", ..." if len(short) > 5 else "")
            raise ValueError(f"{self.name}: {len(short)} clips have fewer frames than {frames}: {listed}")

    def frames(self, index: int, n: int, fps: float | None = None) -> Iterator[Image]:
        """The first ``n`` frames of clip ``index``, of one size.

        fps: frames a second that a video file is read at; None: as it is.
        Raises ValueError naming a clip that is shorter, cannot be decoded, or has frames of several sizes.
        """
        name = self.files[index]
        images = self._images(name, n) if name in self._pictures else frames_of(self.root / name, n, fps)
        read, size = 0, None
        for image in images:
            if size not in (None, image.size):
                raise ValueError(f"{self.name}: {name} has frames of {size} and {image.size} pixels (width, height)")
            size, read = image.size, read + 1
            yield image
        if read < n:
            raise ValueError(f"{self.name}: {name} has {read} frames, expected at least {n}")

    def _images(self, name: str, n: int) -> Iterator[Image]:
        for file in self._pictures[name][:n]:
            yield picture(str(self.root / name / file), f"{self.name}: {name}/{file}")


def is_video_file(name: str) -> bool:
    """Whether a file of this name may be a video."""
    return os.path.splitext(name)[1].lower() in CONTAINERS


def frames_in(folder: Path) -> tuple[str, ...]:
    """The pictures directly in a folder, in the order of the numbers in their names: 2.png before 10.png."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return tuple(sorted((name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES), key=_by_numbers))


def _by_numbers(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts], name

"""Reading the first frames of a video by ffmpeg: of the containers that are meant, from this file alone, bounded."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from facm.core.ffmpeg import HOW, MOST_SECONDS, last_words, program, quietly
from facm.core.untrusted.door import open_regular
from facm.core.untrusted.picture import MOST_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

CONTAINERS = {
    **dict.fromkeys((".mp4", ".m4v", ".mov"), "mov"),
    **dict.fromkeys((".webm", ".mkv"), "matroska"),
    ".avi": "avi",
}
"""Suffix -> the one reader of ffmpeg's that may try it. Among its others are playlists, which name further files and
addresses."""
MOST_HEADER = 64
"""Bytes of a frame's header."""


def frames_of(path: Path, n: int, fps: float | None = None) -> Iterator[Image]:
    """The first ``n`` frames, upright, or all where there are fewer; of a video that is resampled to ``fps`` frames a
    second where that is given.

    Raises ValueError naming ``path`` for a file that is not regular or of another container, where there is no ffmpeg,
    and for a video that it cannot decode.
    """
    kind = CONTAINERS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: expected a video, {', '.join(CONTAINERS)}")
    ffmpeg = program()
    if ffmpeg is None:
        raise ValueError(f"{path}: reading a video needs ffmpeg, and there is none: {HOW}, or bring folders of frames")
    open_regular(path).close()
    safe = ("-nostdin", "-protocol_whitelist", "file", "-max_pixels", str(MOST_PIXELS), "-f", kind)
    rate = () if fps is None else ("-vf", f"fps={fps:g}")
    frames = ("-map", "0:v:0", *rate, "-frames:v", str(n), "-fps_mode", "passthrough" if fps is None else "cfr")
    out = (*frames, "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "pipe:1")
    yield from _images([ffmpeg, *quietly(), *safe, "-i", f"file:{path.absolute()}", *out], path, n)


def _images(command: list[str], path: Path, n: int) -> Iterator[Image]:
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, stdin=subprocess.DEVNULL) as running,
    ):
        alarm = threading.Timer(MOST_SECONDS, running.kill)
        alarm.start()
        read = 0
        try:
            assert running.stdout is not None
            while read < n and (image := _next(running.stdout, path)) is not None:
                read += 1
                yield image
            running.stdout.close()  # it ends where it would write more
            status = running.wait()
        finally:
            alarm.cancel()
            running.kill()
        if not read:
            said.seek(0)
            raise ValueError(f"{path}: ffmpeg could not read a frame: {last_words(said.read(), status)}")


def _next(stream: IO[bytes], path: Path) -> Image | None:
    """The next frame of a stream of PPM images; None at its end."""
    from PIL import Image

    header = b""
    for _ in range(3):
        header += stream.readline(MOST_HEADER)
    if not header:
        return None
    words = header.split()
    if len(words) != 4 or words[0] != b"P6" or words[3] != b"255":
        raise ValueError(f"{path}: ffmpeg gave {header[:20]!r}, expected frames with 8 bits a channel")
    width, height = int(words[1]), int(words[2])
    pixels = stream.read(3 * width * height)
    return Image.frombytes("RGB", (width, height), pixels) if len(pixels) == 3 * width * height else None

"""ffmpeg, where it is at hand: frames into a file that players open. Nothing here needs it but what says so."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HOW = "install ffmpeg, or pip install 'facm[video]'"
CODECS = (("libx264", "-crf", "18"), ("mpeg4", "-q:v", "3"))
"""In the order in which they are tried: some builds lack the first."""
MOST_FPS = 1000
"""Frames a second that a file may be asked to have, or to be read at."""
MOST_SECONDS = 600
"""For one file."""


def program() -> str | None:
    """The ffmpeg on the path, or the one that imageio-ffmpeg brings; None where there is neither."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        import imageio_ffmpeg

        brought: str = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # the second where it came without a program for this machine
        return None
    return brought


def write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write frames (n, H, W, 3) uint8 as an mp4 without sound. An odd side loses nothing: a row or column is added.

    path: a file of this process alone, whatever its suffix. Raises ValueError where there is no ffmpeg, or it fails.
    """
    ffmpeg = program()
    if ffmpeg is None:
        raise ValueError(f"{path}: an mp4 needs ffmpeg, and there is none: {HOW}")
    _, height, width, _ = frames.shape
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "pipe:0")
    # 4:2:0 needs even sides. "bitexact" leaves out versions and dates, so that the same frames are the same bytes.
    how = ("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-movflags", "+faststart")
    exact = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1")
    said = ""
    for codec in CODECS:
        out = ("-an", *how, "-c:v", *codec, *exact, "-f", "mp4", "-y", f"file:{path}")
        said = _run([ffmpeg, *quietly(), *raw, *out], frames.tobytes())
        if not said:
            return
    raise ValueError(f"{path}: ffmpeg could not write it: {said}")


def quietly() -> Sequence[str]:
    """Options with which ffmpeg says nothing but errors."""
    return ("-hide_banner", "-loglevel", "error")


def _run(command: Sequence[str], given: bytes) -> str:
    """The end of what it says where it fails, which is never empty; else nothing."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=MOST_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)[-400:]
    return "" if done.returncode == 0 else last_words(done.stderr, done.returncode)


def last_words(said: bytes, status: int) -> str:
    """The end of what ffmpeg said, in one line."""
    words = " ".join(said.decode(errors="replace").split())[-400:]
    return words or f"it ended with the status {status}"

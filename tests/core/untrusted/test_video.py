"""Reading videos: how ffmpeg is called, what is made of its answers, and what is refused. The program is a script here,
but for the last test."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from facm.core import ffmpeg
from facm.core.untrusted import video
from facm.core.untrusted.video import frames_of

TWO = b"P6\n2 1\n255\n" + bytes(range(6)) + b"P6\n2 1\n255\n" + bytes(range(6, 12))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Answers with the content of the file "answer", and notes its arguments in "said"."""
    program = tmp_path / "ffmpeg"
    here = f'here="{tmp_path}"'
    program.write_text(f'#!/bin/sh\n{here}\necho "$@" > "$here/said"\ncat "$here/answer"\necho broken >&2\n')
    program.chmod(0o755)
    monkeypatch.setattr(video, "program", lambda: str(program))
    (tmp_path / "a.mp4").write_bytes(b"video")
    return tmp_path


def test_frames_are_those_that_ffmpeg_gives_and_no_more_than_wanted(stand_in):
    (stand_in / "answer").write_bytes(TWO)
    frames = list(frames_of(stand_in / "a.mp4", 5))
    assert [frame.size for frame in frames] == [(2, 1)] * 2
    assert np.asarray(frames[1]).reshape(-1).tolist() == list(range(6, 12))
    assert len(list(frames_of(stand_in / "a.mp4", 1))) == 1
    (stand_in / "answer").write_bytes(TWO[:-1])
    assert len(list(frames_of(stand_in / "a.mp4", 5))) == 1  # half a frame is none


def test_ffmpeg_reads_this_file_alone_by_one_reader(stand_in):
    (stand_in / "answer").write_bytes(TWO)
    list(frames_of(stand_in / "a.mp4", 3, fps=16))
    said = (stand_in / "said").read_text()
    before, _, after = said.partition(" -i ")
    assert "-protocol_whitelist file" in before
    assert "-f mov" in before
    assert f"-max_pixels {video.MOST_PIXELS}" in before
    assert after.startswith(f"file:{stand_in}/a.mp4 ")
    assert "-vf fps=16 -frames:v 3" in after


def test_what_is_no_video_is_refused_by_name(stand_in):
    with pytest.raises(ValueError, match=r"a.m3u8: expected a video, .mp4, .m4v"):
        list(frames_of(stand_in / "a.m3u8", 1))
    (stand_in / "b.mp4").mkdir()
    with pytest.raises(ValueError, match=r"b.mp4 is a folder, expected a regular file"):
        list(frames_of(stand_in / "b.mp4", 1))
    (stand_in / "answer").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.mp4: ffmpeg could not read a frame: broken"):
        list(frames_of(stand_in / "a.mp4", 1))
    (stand_in / "answer").write_bytes(b"P6\n2 1\n65535\n" + bytes(12))
    with pytest.raises(ValueError, match="expected frames with 8 bits a channel"):
        list(frames_of(stand_in / "a.mp4", 1))


def test_without_ffmpeg_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "program", lambda: None)
    with pytest.raises(
        ValueError, match=r"needs ffmpeg, and there is none: install ffmpeg, or pip .*, or bring folders"
    ):
        list(frames_of(tmp_path / "a.mp4", 1))


def test_the_program_is_that_of_the_path_or_of_imageio_ffmpeg(monkeypatch):
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda name: f"/there/{name}")
    assert ffmpeg.program() == "/there/ffmpeg"
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert ffmpeg.program() is None


@pytest.mark.skipif(ffmpeg.program() is None, reason=f"needs ffmpeg: {ffmpeg.HOW}")
def test_a_playlist_under_the_name_of_a_video_opens_nothing(tmp_path):
    secret = tmp_path / "other.mp4"
    ffmpeg.write_mp4(secret, np.zeros((3, 16, 16, 3), np.uint8), 8)
    for name, content in {"a.mp4": "#EXTM3U\n#EXTINF:1,\n", "b.avi": "ffconcat version 1.0\nfile "}.items():
        (tmp_path / name).write_text(f"{content}{secret}\n")
        with pytest.raises(ValueError, match=f"{name}: ffmpeg could not read a frame"):
            list(frames_of(tmp_path / name, 2))


def test_an_abandoned_video_leaves_no_process(stand_in, monkeypatch):
    (stand_in / "answer").write_bytes(TWO)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(video.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    frames = frames_of(Path(stand_in / "a.mp4"), 2)
    next(frames)
    frames.close()
    assert started[0].poll() is not None

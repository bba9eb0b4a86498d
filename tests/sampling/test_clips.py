"""Clips as pictures and as mp4: strips of frames, sheets of clips that play at once, and no ffmpeg."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from facm.core import ffmpeg
from facm.core.files import TakenError
from facm.core.untrusted.video import frames_of
from facm.sampling import clips as playing
from facm.sampling import images as drawing
from facm.sampling.captioned import captioned_png
from facm.sampling.clips import clip_to_uint8, save_mp4, side_by_side
from facm.sampling.images import as_strips, grid_png, shrunk, to_uint8

needs_ffmpeg = pytest.mark.skipif(ffmpeg.program() is None, reason=f"needs ffmpeg: {ffmpeg.HOW}")


def clips(n=2, channels=3, frames=4, height=6, width=8):
    """Frame k of clip i is one grey, which tells both."""
    levels = (torch.arange(n)[:, None] * frames + torch.arange(frames)) / (n * frames)
    return levels[:, None, :, None, None].expand(n, channels, frames, height, width).clone()


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_strip_is_the_frames_beside_each_other_on_white():
    x = clips()
    strip = as_strips(x)
    assert strip.shape == (2, 3, 6, 4 * 9 - 1)
    for k in range(4):
        assert torch.equal(strip[:, :, :, 9 * k : 9 * k + 8], x[:, :, k])
    assert (strip[:, :, :, 8::9] == 1).all()
    assert as_strips(clips(frames=20)).shape[3] == 8 * 9 - 1  # no more than eight
    assert torch.equal(as_strips(clips(frames=20))[:, :, :, -8:], clips(frames=20)[:, :, -1])
    images = torch.zeros(2, 3, 4, 4)
    assert as_strips(images) is images


def test_frames_that_have_no_room_are_shrunk(monkeypatch):
    monkeypatch.setattr(drawing, "MOST_WIDTH", 16)
    x = clips()
    assert as_strips(x).shape == (2, 3, 3, 4 * 5 - 1)
    assert torch.allclose(as_strips(x)[:, :, :, :4], x[:, :, 0, :3, :4])
    checked = torch.tensor([[1.0, 3.0, 9.0], [5.0, 7.0, 9.0]]).expand(1, 1, 2, 3)
    assert shrunk(checked, 2).flatten().tolist() == [4.0]  # what is left over is cut


def test_a_grid_of_clips_has_one_in_a_row():
    x = clips(n=3)
    got = pixels(grid_png(x, scale=1))
    assert got.shape == (3 * 8 - 2, 35, 3)
    assert np.array_equal(got[8:14, 9:17], to_uint8(x[1:2, :, 1])[0])
    assert (got[6:8] == 255).all()


def test_prompts_of_clips_are_below_each_other():
    two, one = (pixels(captioned_png([clips(n=n)], ["a", "b"][:n])) for n in (2, 1))
    assert two.shape == (2 * len(one), one.shape[1], 3)


@pytest.mark.parametrize("shape", [(2, 4, 3, 8, 8), (2, 2, 8, 8)])
def test_what_is_no_picture_is_not_drawn(shape):
    with pytest.raises(ValueError, match=r"samples of shape \(2, .*8, 8\) cannot be drawn"):
        grid_png(torch.zeros(shape))


def test_arrays_of_clips_keep_their_frames():
    got = clip_to_uint8(clips(channels=1))
    assert (got.shape, got.dtype) == ((2, 4, 6, 8, 3), np.uint8)
    assert np.array_equal(got[1, 2], to_uint8(clips(channels=1)[1:2, :, 2])[0])
    assert clip_to_uint8(torch.zeros(2, 1, 4, 4)).shape == (2, 4, 4, 3)


def test_clips_play_at_once_in_rows_or_in_a_square(monkeypatch):
    monkeypatch.setattr(playing, "LEAST_SIDE", 1)
    one, other = clips(n=2), clips(n=2).flip(2)
    sheet = side_by_side([one, other])
    assert sheet.shape == (4, 2 * 7 - 1, 2 * 9 - 1, 3)
    assert np.array_equal(sheet[:, :6, :8], clip_to_uint8(one)[0])
    assert np.array_equal(sheet[:, 7:, 9:], clip_to_uint8(other)[1])
    assert side_by_side([clips(n=3)]).shape == (4, 13, 17, 3)  # 2 x 2, one of them empty
    monkeypatch.setattr(playing, "MOST_WIDTH", 8)
    assert side_by_side([one]).shape == (4, 3, 2 * 5 - 1, 3)
    assert side_by_side([clips(n=1)]).shape == (4, 6, 8, 3)  # a single one keeps its size


def test_small_clips_are_enlarged_without_blur():
    sheet = side_by_side([clips(n=1)])
    assert sheet.shape == (4, 22 * 6, 22 * 8, 3)
    assert (sheet == sheet[:, :1, :1]).all()


def test_without_ffmpeg_there_is_no_mp4_and_its_writer_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(playing, "program", lambda: None)
    assert save_mp4(tmp_path / "x.mp4", [clips()]) is False
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(ffmpeg, "program", lambda: None)
    with pytest.raises(ValueError, match=r"x.mp4: an mp4 needs ffmpeg, and there is none: install ffmpeg, or pip"):
        ffmpeg.write_mp4(tmp_path / "x.mp4", np.zeros((1, 2, 2, 3), np.uint8), 8)


def test_where_ffmpeg_fails_its_words_are_said_and_nothing_is_left(tmp_path, monkeypatch):
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\ncat > /dev/null\necho Unknown encoder >&2\nexit 3\n")
    broken.chmod(0o755)
    for module in (ffmpeg, playing):
        monkeypatch.setattr(module, "program", lambda: str(broken))
    with pytest.raises(ValueError, match="ffmpeg could not write it: Unknown encoder"):
        save_mp4(tmp_path / "out" / "x.mp4", [clips()])
    assert list((tmp_path / "out").iterdir()) == []


@needs_ffmpeg
def test_an_mp4_is_what_was_drawn_and_is_not_overwritten(tmp_path):
    path = tmp_path / "x.mp4"
    assert save_mp4(path, [clips(n=1)], fps=10, new=True)
    frames = [np.asarray(frame) for frame in frames_of(path, 100)]
    expected = side_by_side([clips(n=1)])
    assert len(frames) == 4
    for frame, want in zip(frames, expected, strict=True):
        assert np.abs(frame.astype(int) - want).max() <= 6  # it is compressed, and not in RGB
    assert len(list(frames_of(path, 100, fps=20))) == 8
    assert len(list(frames_of(path, 2))) == 2
    content = path.read_bytes()
    with pytest.raises(TakenError):
        save_mp4(path, [clips(n=1)], new=True)
    save_mp4(path, [clips(n=1)], fps=10)
    assert path.read_bytes() == content  # the same frames are the same bytes

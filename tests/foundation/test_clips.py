"""Clips, from what people bring and from the teacher, as latents of several frames; and back into frames."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from facm.core import ffmpeg
from facm.data.crop import centre_crop
from facm.data.in_memory import from_bytes
from facm.derivative import OpLevel
from facm.derivative.base import Prediction
from facm.foundation import Captioned
from facm.foundation.captions.manifest import read_manifest
from facm.foundation.folder import load_pipeline, open_model
from facm.foundation.network import DiffusersNetwork
from facm.foundation.prepare import sources
from facm.foundation.prepare.clips import Clips, frames_in
from facm.foundation.prepare.pipeline import Options, opened, prepare
from facm.foundation.prepare.sizes import check_frames
from facm.foundation.prepare.sources import source_at
from facm.foundation.prepare.verify import verify
from facm.foundation.prompting import shape_of
from facm.sampling.generate import noise
from tests.foundation.conformance_parts import CASES, relative
from tests.foundation.prepared_parts import FAST, photos, prompts_file
from tests.foundation.tiny_pipelines_parts import saved

FRAMES = {"wan": 5, "ltx": 9}
TEXTS = ["a red fox", "seven"]


def folders(path: Path, frames: int = 6, names: tuple[str, ...] = ("fox", "b/cat"), size: int = 32) -> Path:
    """Folders of frames, whose numbers do not sort as text, each with its caption beside it."""
    rng = np.random.default_rng(0)
    for name in names:
        (path / name).mkdir(parents=True)
        (path / f"{name}.txt").write_text(f"the {name}\n")
        for k in range(frames):
            pixels = rng.integers(0, 255, (size, size + 16, 3), np.uint8)
            Image.fromarray(pixels).save(path / name / f"frame{k + 5}.png")
    return path


# what people bring


def test_folders_of_frames_are_clips_with_the_text_of_their_name(tmp_path: Path) -> None:
    source = source_at(folders(tmp_path), clips=True)
    assert source.prompts == ("the b/cat", "the fox")
    assert isinstance(source.pictures, Clips)
    assert source.pictures.files == ("b/cat", "fox")
    assert frames_in(tmp_path / "fox") == tuple(f"frame{k}.png" for k in range(5, 11))  # not frame10 first
    assert sources.sizes_of(source.pictures) == [(32, 48)] * 2
    assert len(list(source.pictures.frames(0, 3))) == 3
    assert source.fingerprint != dataclasses.replace(source, prompts=("the b/cat", "a fox")).fingerprint


def test_json_lines_name_clips(tmp_path: Path) -> None:
    folders(tmp_path / "clips")
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"prompt": "a fox", "video": "clips/fox"}) + "\n")
    source = source_at(path, clips=True)
    assert (source.prompts, source.pictures.files) == (("a fox",), ("clips/fox",))
    path.write_text(json.dumps({"prompt": "a fox", "video": "clips/gone"}) + "\n")
    with pytest.raises(ValueError, match="1 are neither a video nor a folder of frames: clips/gone"):
        source_at(path, clips=True)
    path.write_text(json.dumps({"prompt": "a fox", "video": "clips/fox"}) + '\n{"prompt": "a cat"}\n')
    with pytest.raises(ValueError, match=r"1 prompts without a video \(line 2\)"):
        source_at(path, clips=True)


def test_clips_and_captions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "fox.txt").rename(tmp_path / "dog.txt")
    with pytest.raises(ValueError, match=r"1 clips without a caption: fox; 1 captions without a clip: dog.txt"):
        source_at(tmp_path, clips=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no clips, expected .mp4, .*or folders of frames, each with a .txt"):
        source_at(tmp_path / "empty", clips=True)
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="is a tar file"):
        source_at(tmp_path / "a.tar", clips=True)


def test_clips_are_not_taken_for_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b/cat.txt is the caption of a clip; expected a number of frames above 1"):
        source_at(folders(tmp_path / "frames"))
    (tmp_path / "fox.mp4").write_bytes(b"")
    (tmp_path / "fox.txt").write_text("a fox")
    with pytest.raises(ValueError, match=r"fox.txt is the caption of a clip"):
        source_at(tmp_path)


def test_video_files_without_ffmpeg_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fox.mp4").write_bytes(b"")
    (tmp_path / "fox.txt").write_text("a fox")
    monkeypatch.setattr(ffmpeg, "program", lambda: None)
    with pytest.raises(ValueError, match=r"1 video files, such as fox.mp4, needs ffmpeg, and there is none: install"):
        source_at(tmp_path, clips=True)


def test_short_clips_and_frames_of_several_sizes_are_named(tmp_path: Path) -> None:
    clips = source_at(folders(tmp_path), clips=True).pictures
    assert isinstance(clips, Clips)
    clips.check(6)
    with pytest.raises(ValueError, match=r"2 clips have fewer frames than 7: b/cat \(6\), fox \(6\)"):
        clips.check(7)
    with pytest.raises(ValueError, match="fox has 6 frames, expected at least 9"):
        list(clips.frames(1, 9))
    Image.new("RGB", (8, 8)).save(tmp_path / "fox" / "frame6.png")
    with pytest.raises(ValueError, match=r"fox has frames of \(48, 32\) and \(8, 8\) pixels"):
        list(clips.frames(1, 5))


# numbers of frames


def test_models_make_so_many_frames_and_no_others() -> None:
    for frames in (1, 5, 81):
        check_frames(frames, 4, "WanPipeline")
    check_frames(1, 0, "FluxPipeline")
    with pytest.raises(
        ValueError, match=r"frames = 6, expected 1 \+ a multiple of 4 for a WanPipeline, such as 5 or 9"
    ):
        check_frames(6, 4, "WanPipeline")
    with pytest.raises(ValueError, match=r"for a LTXPipeline, such as 9$"):
        check_frames(2, 8, "LTXPipeline")
    with pytest.raises(ValueError, match=r"frames = 5 with a FluxPipeline, which makes pictures; expected 1"):
        check_frames(5, 0, "FluxPipeline")


def test_what_does_not_fit_is_refused_before_anything_is_written(wan: Path, tmp_path: Path) -> None:
    clips = source_at(folders(tmp_path / "clips"), clips=True)
    pictures, prompts = source_at(photos(tmp_path / "photos", [(32, 32)])), source_at(prompts_file(tmp_path))
    for source, options, message in (
        (prompts, dataclasses.replace(FAST, frames=6), r"frames = 6, expected 1 \+ a multiple of 4"),
        (prompts, dataclasses.replace(FAST, frames=0), "frames = 0, expected at least 1"),
        (prompts, dataclasses.replace(FAST, frames=5, fps=16), r"fps = 16, .*with clips as the source, or None"),
        (pictures, Options(frames=5), r"frames = 5 with the pictures of .*photos, expected 1, or clips"),
        (clips, Options(size=(32,), frames=9), r"2 clips have fewer frames than 9"),
        (clips, Options(size=(32,), frames=5, fps=0.0), r"fps = 0.0, expected a number up to 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(source, wan, tmp_path / "data", options)
    assert not (tmp_path / "data").exists()


def test_pictures_are_recorded_as_before_there_were_clips(wan: Path, tmp_path: Path) -> None:
    source = source_at(prompts_file(tmp_path))
    before = opened(source, wan, tmp_path / "data", FAST).settings.recorded
    assert not {"frames", "fps"} & before.keys()
    of_clips = opened(source, wan, tmp_path / "data", dataclasses.replace(FAST, frames=9)).settings.recorded
    assert of_clips == {**before, "frames": 9, "fps": None}


def test_shapes_of_what_is_sampled(wan: Path) -> None:
    like = (4, 2, 4, 6)
    assert shape_of(wan, like, frames=13) == (4, 4, 4, 6)
    assert shape_of(wan, like, 64, 32) == (4, 2, 8, 4)
    assert shape_of(wan, like, 64, 32, 1) == (4, 1, 8, 4)
    with pytest.raises(ValueError, match="frames = 3, expected 1"):
        shape_of(wan, like, frames=3)


# latents of several frames


@pytest.mark.slow
@pytest.mark.parametrize("kind", FRAMES)
def test_the_teacher_makes_the_clips_that_its_pipeline_makes(kind: str, tmp_path: Path) -> None:
    model = open_model(saved(kind, tmp_path / kind))
    pipe, family, frames = load_pipeline(model, list(model.parts)), model.family, FRAMES[kind]
    side = 2 * family.multiple(pipe)
    options = dataclasses.replace(FAST, size=(side,), steps=3, frames=frames)
    prepare(source_at(prompts_file(tmp_path, TEXTS)), model.path, tmp_path / "data", options)
    verify(tmp_path / "data")
    dataset = Captioned(str(tmp_path / "data")).open()
    assert dataset.shape == family.shape(pipe, side, side, frames)
    assert dataset.shape[1] == 2
    x_1 = dataset.read(np.arange(2)).x_1

    def called(output: str) -> torch.Tensor:
        return pipe(
            prompt=list(TEXTS),
            negative_prompt=["bad"] * 2,
            guidance_scale=3.0,
            height=side,
            width=side,
            num_inference_steps=3,
            latents=family.packed(noise(0, range(2), 0, dataset.shape)),
            output_type=output,
            return_dict=False,
            **family.call_arguments(frames),
        )[0]

    expected = family.from_pipeline(pipe, called("latent"), dataset.shape)
    torch.testing.assert_close(x_1, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    decoder = dataset.decoder(torch.device("cpu"))
    clip = decoder(x_1)
    assert decoder.frames(dataset.shape) == frames
    assert clip.shape == (2, 3, frames, side, side)
    torch.testing.assert_close(clip.transpose(1, 2) / 2 + 0.5, called("pt"), rtol=0, atol=1e-5)
    assert decoder(x_1[:, :, :1]).shape == (2, 3, side, side)  # one frame is a picture


@pytest.mark.slow
@pytest.mark.parametrize("kind", FRAMES)
def test_the_derivative_over_clips_is_that_of_plain_forward_mode(kind: str, tmp_path: Path) -> None:
    model = open_model(saved(kind, tmp_path / kind))
    pipe, family = load_pipeline(model, list(model.parts)), model.family
    side = 2 * family.multiple(pipe)
    rng = torch.Generator().manual_seed(0)
    x, v = (torch.randn(2, *family.shape(pipe, side, side, FRAMES[kind]), generator=rng) for _ in range(2))
    cond = {name: value.detach() for name, value in family.encode(pipe, TEXTS).items()}
    function = Prediction(DiffusersNetwork(pipe.transformer, family), lambda time: {"t": time}, cond)
    at, along = (x, torch.tensor([0.2, 0.9])), (v, torch.ones(2))
    value, tangent = OpLevel()(function, at, along)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        want, want_tangent = torch.func.jvp(function, at, along)
    assert relative(value, want) < 2e-6
    assert relative(tangent, want_tangent) < 5e-6


@torch.no_grad()
def test_clips_are_what_the_vae_makes_of_their_first_frames(wan: Path, tmp_path: Path) -> None:
    source = source_at(folders(tmp_path / "clips", frames=6), clips=True)
    options = Options(size=(16,), frames=5, batch_size=2, shard_size=2)
    summary = prepare(source, wan, tmp_path / "data", options)
    [bucket] = summary.manifest.buckets
    assert (bucket.frames, bucket.shape, bucket.n) == (5, (4, 2, 2, 2), 2)
    assert read_manifest(tmp_path / "data") == summary.manifest
    vae = load_pipeline(open_model(wan), ("vae",)).vae
    dataset = Captioned(str(tmp_path / "data")).open()
    assert dataset.prompts([0, 1]) == ["the b/cat", "the fox"]
    frames = [Image.open(tmp_path / "clips" / "fox" / f"frame{k}.png").convert("RGB") for k in range(5, 10)]
    clip = from_bytes(np.stack([centre_crop(frame, 16) for frame in frames]).transpose(3, 0, 1, 2))
    mode = vae.encode(torch.from_numpy(clip)[None]).latent_dist.mode()
    mean, std = (
        torch.tensor(value).view(1, -1, 1, 1, 1) for value in (vae.config.latents_mean, vae.config.latents_std)
    )
    torch.testing.assert_close(dataset.read(np.array([1])).x_1, (mode - mean) / std, rtol=1e-4, atol=1e-5)


def test_families_of_pictures_make_none() -> None:
    assert set(FRAMES) <= set(CASES)
    from facm.foundation.families.table import FAMILIES

    for name, family in FAMILIES.items():
        if name not in ("WanPipeline", "LTXPipeline"):
            assert family.frame_multiple(None) == 0


@pytest.mark.skipif(ffmpeg.program() is None, reason=f"needs ffmpeg: {ffmpeg.HOW}")
def test_video_files_are_clips(tmp_path: Path) -> None:
    frames = np.zeros((7, 32, 48, 3), np.uint8)
    frames[:, :, :, 0] = np.arange(7)[:, None, None] * 30
    ffmpeg.write_mp4(tmp_path / "fox.mp4", frames, 8)
    (tmp_path / "fox.txt").write_text("a fox")
    clips = source_at(tmp_path, clips=True).pictures
    assert isinstance(clips, Clips)
    assert (clips.files, clips.size(0)) == (("fox.mp4",), (32, 48))
    red = [np.asarray(frame)[:, :, 0].mean() for frame in clips.frames(0, 5)]
    assert red == pytest.approx([0, 30, 60, 90, 120], abs=8)
    slower = [np.asarray(frame)[:, :, 0].mean() for frame in clips.frames(0, 3, fps=4)]
    assert slower == pytest.approx([0, 60, 120], abs=40)
    with pytest.raises(ValueError, match=r"fox.mp4 has 7 frames, expected at least 9"):
        list(clips.frames(0, 9))

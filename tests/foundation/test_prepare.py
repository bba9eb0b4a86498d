"""Prompts and pictures to prepared data: what the pipeline would make, the same bytes however it is made, all faults
said."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from facm.core.rng import derive
from facm.data.crop import centre_crop
from facm.data.in_memory import from_bytes
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened as ranks
from facm.foundation import Captioned
from facm.foundation.captions.manifest import check_made_by, read_manifest
from facm.foundation.captions.shards import PROMPTS as PROMPT_FILES
from facm.foundation.captions.shards import read_shard
from facm.foundation.folder import load_pipeline, open_model
from facm.foundation.prepare import pipeline as preparing
from facm.foundation.prepare import samples as sampling
from facm.foundation.prepare import text as encoding
from facm.foundation.prepare.pipeline import Options, prepare
from facm.foundation.prepare.schedule import default_size, sigmas_of
from facm.foundation.prepare.sources import source_at
from facm.foundation.prepare.verify import verify
from facm.sampling.generate import noise
from tests.distributed.parallel_parts import call
from tests.foundation.prepared_parts import FAST, PROMPTS, Masked, contents, photos, prompts_file

FILES = {
    ".lock",
    "manifest.json",
    "null.safetensors",
    *(f"{a}_0000{k}.safetensors" for a in ("prompts", "samples") for k in range(3)),
}


# what is written


def test_the_teacher_makes_what_its_pipeline_makes(wan: Path, by_teacher: Path) -> None:
    pipe = load_pipeline(open_model(wan), ("text_encoder", "transformer", "vae"))
    x_0 = noise(FAST.seed, range(5), 0, (4, 1, 4, 4))
    made = pipe(
        prompt=list(PROMPTS),
        negative_prompt="bad",
        height=32,
        width=32,
        num_frames=1,
        num_inference_steps=2,
        guidance_scale=3.0,
        latents=x_0,
        output_type="latent",
    ).frames
    dataset = Captioned(str(by_teacher)).open()
    batch = dataset.read(np.arange(5))
    torch.testing.assert_close(batch.x_1, made, rtol=1e-5, atol=1e-5)
    assert float((made - x_0).abs().mean()) > 0.1
    embeddings = pipe.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False, max_sequence_length=512)[0]
    torch.testing.assert_close(batch.cond["embeddings"], embeddings, rtol=1e-5, atol=1e-6)  # padding as the pipeline's
    assert dataset.prompts(np.arange(5)) == list(PROMPTS)
    assert set(contents(by_teacher)) == FILES


def test_the_manifest_says_how_they_were_made(wan: Path, by_teacher: Path) -> None:
    manifest = read_manifest(by_teacher)
    assert (manifest.n, manifest.pipeline, manifest.family, manifest.cut) == (5, "WanPipeline", "Wan", 0)
    assert set(manifest.hashes) == {"tokenizer", "text_encoder", "vae", "transformer"}
    assert manifest.hashes["vae"] == open_model(wan).identity("vae")["vae"]
    assert manifest.teacher is not None
    assert (manifest.teacher.steps, manifest.teacher.guidance_scale, manifest.teacher.seed) == (2, 3.0, 0)
    assert manifest.teacher.sigmas == pytest.approx((1.0, 0.001, 0.0), abs=1e-6)
    assert manifest.negative_prompt == "bad"
    assert verify(by_teacher) == manifest
    check_made_by(manifest, open_model(wan), by_teacher)


def test_pictures_go_into_buckets_and_are_what_the_vae_makes_of_their_crops(wan: Path, of_pictures: Path) -> None:
    dataset = Captioned(str(of_pictures)).open()
    manifest = dataset.manifest
    assert set(manifest.hashes) == {"tokenizer", "text_encoder", "vae"}  # the transformer had no part in it
    assert manifest.teacher is None
    assert sum(bucket.n for bucket in manifest.buckets) == 6
    assert [bucket.n for bucket in manifest.buckets] == sorted((b.n for b in manifest.buckets), reverse=True)
    for bucket in manifest.buckets:
        assert bucket.height % 16 == bucket.width % 16 == 0
        assert bucket.shape == (4, 1, bucket.height // 8, bucket.width // 8)
    family, vae = open_model(wan).family, load_pipeline(open_model(wan), ("vae",)).vae
    for k, bucket in enumerate(manifest.buckets):
        for index in dataset.buckets[k]:
            [prompt] = dataset.prompts([index])
            number = int(prompt.split()[1])
            image = Image.open(of_pictures.parent / "photos" / "ab"[number % 2] / f"{number}.png").convert("RGB")
            crop = from_bytes(centre_crop(image, bucket.height, bucket.width).transpose(2, 0, 1))
            with torch.no_grad():
                latent = family.to_latents(vae, torch.from_numpy(crop)[None])
            torch.testing.assert_close(dataset.read(np.array([index])).x_1, latent, rtol=1e-4, atol=1e-5)


def test_each_part_of_the_model_is_in_memory_only_while_it_is_needed(
    wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        preparing, "load_pipeline", lambda m, parts, *a: loaded.append(tuple(parts)) or load_pipeline(m, parts, *a)
    )
    monkeypatch.setattr(preparing, "_network", lambda *a: pytest.fail("the transformer is not wanted"))
    source = source_at(photos(tmp_path / "photos", [(32, 32)] * 2))
    prepare(source, wan, tmp_path / "data", Options())
    assert loaded == [(), ("tokenizer", "text_encoder"), ("vae",)]
    loaded.clear()
    assert prepare(source, wan, tmp_path / "data", Options()).made == 0
    assert loaded == [()]


def test_noise_is_of_the_seed_and_the_prompt_and_not_of_the_batch(wan: Path, by_teacher: Path, tmp_path: Path) -> None:
    source = source_at(prompts_file(tmp_path))
    prepare(source, wan, tmp_path / "data", dataclasses.replace(FAST, batch_size=3, shard_size=5))
    one, other = (Captioned(str(folder)).open() for folder in (by_teacher, tmp_path / "data"))
    assert other.prompts(range(5)) == one.prompts(range(5))
    torch.testing.assert_close(one.read(np.arange(5)).x_1, other.read(np.arange(5)).x_1)
    again = dataclasses.replace(FAST, seed=1)
    prepare(source, wan, tmp_path / "other", again)
    assert (
        float(
            (Captioned(str(tmp_path / "other")).open().read(np.arange(5)).x_1 - one.read(np.arange(5)).x_1).abs().mean()
        )
        > 0.1
    )
    assert derive(0, 1, 0) != derive(1, 1, 0)


def test_types_of_what_is_stored(wan: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(FAST, latents="bf16", embeddings="bf16")
    prepare(source_at(prompts_file(tmp_path)), wan, tmp_path / "data", options)
    batch = Captioned(str(tmp_path / "data")).open().read(np.arange(3))
    assert batch.x_1.dtype == torch.float32
    assert torch.equal(batch.x_1, batch.x_1.bfloat16().float())
    assert batch.cond["embeddings"].dtype == torch.bfloat16
    assert read_manifest(tmp_path / "data").dtype == "BF16"
    assert verify(tmp_path / "data").n == 5


def test_the_schedule_is_the_pipelines_for_its_size_and_shift(wan: Path) -> None:
    pipe = load_pipeline(open_model(wan), ("text_encoder",))
    assert sigmas_of(pipe, 4, 32, 32)[0] == 1.0
    assert type(pipe).__name__ == "WanPipeline"
    pipe.scheduler.register_to_config(shift=3.0)
    pipe.scheduler.set_shift(3.0)
    shifted = sigmas_of(pipe, 4, 32, 32)
    assert shifted[1] == pytest.approx(3 * (s := sigmas_without_shift(4)[1]) / (1 + 2 * s), abs=2e-3)
    assert len(shifted) == 5
    assert default_size(pipe) == (480, 832)


def sigmas_without_shift(n: int) -> list[float]:
    return [*np.linspace(1.0, 0.001, n), 0.0]


# prompts whose length varies


def test_embeddings_with_a_mask_have_one_length_and_no_padding_on_the_disk(
    wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facm.foundation.families.table.FAMILIES", {"WanPipeline": Masked()})
    monkeypatch.setattr("facm.foundation.prepare.pipeline._samples", fake_samples)
    options = dataclasses.replace(FAST, negative_prompt="a negative")
    summary = prepare(source_at(prompts_file(tmp_path)), wan, tmp_path / "data", options)
    shard = read_shard(tmp_path / "data" / "prompts_00000.safetensors", PROMPT_FILES)
    assert shard.shapes["part.embeddings"] == (len(PROMPTS[0]) + len(PROMPTS[1]) + 2, 3)
    batch = Captioned(str(tmp_path / "data")).open().read(np.array([2, 0]))
    assert batch.cond["embeddings"].shape == (2, 24, 3)  # the longest has 23
    assert batch.cond["mask"].sum(1).tolist() == [6, 10]
    assert batch.cond["pooled"].dtype == torch.bfloat16
    assert not batch.cond["embeddings"][~batch.cond["mask"]].any()
    assert [(cut.index, cut.lost) for cut in summary.cut] == [(1, PROMPTS[1][9:]), (3, PROMPTS[3][9:])]
    assert summary.manifest.cut == 2


def fake_samples(work, out, parts, world, report):  # type: ignore[no-untyped-def]
    todo = preparing.unfinished(out, work.settings, "samples")
    return sum(
        sampling.write_samples(
            out, work.settings, todo, 2, lambda places: torch.zeros(len(places), *work.shapes[0]), str
        )
    )


# interrupted, repeated, shared


@pytest.mark.slow
def test_goes_on_after_any_interruption_to_the_same_bytes(
    wan: Path, by_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, source = contents(by_teacher), source_at(prompts_file(by_teacher.parent))
    steps = [
        *((encoding, "write"), (preparing, "sigmas_of"), (sampling, "write_text"), (preparing, "write_text")),
    ]
    for number, (module, name) in enumerate(steps):
        out, whole, calls = tmp_path / f"broken{number}", getattr(module, name), iter(range(100))

        def failing(*arguments, whole=whole, calls=calls):  # type: ignore[no-untyped-def]
            if next(calls) == 1 - (whole in (sigmas_of,)):
                raise KeyboardInterrupt
            return whole(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            with pytest.raises(KeyboardInterrupt):
                prepare(source, wan, out, FAST)
        assert not (out / "manifest.json").exists()
        with pytest.raises(ValueError, match="preparation not finished: run facm prepare again"):
            Captioned(str(out)).open()
        prepare(source, wan, out, FAST)
        assert contents(out) == expected


def test_whole_files_are_not_made_again_and_broken_ones_are(wan: Path, by_teacher: Path, tmp_path: Path) -> None:
    out, source = shutil.copytree(by_teacher, tmp_path / "data"), source_at(prompts_file(tmp_path))
    source = dataclasses.replace(source, name=str(prompts_file(by_teacher.parent)))
    (out / "prompts_00001.safetensors").write_bytes(b"")
    (out / "samples_00002.safetensors").unlink()
    said: dict[str, list[int]] = {}
    summary = prepare(
        source, wan, out, FAST, report=lambda what: lambda done, n: said.setdefault(what, []).append(done)
    )
    assert (summary.encoded, summary.made) == (2, 1)
    assert said == {"prompts": [5], "pictures": [5]}
    assert contents(out) == contents(by_teacher)


def prepare_on_ranks(prompts: str, model: str, out: str) -> int:
    with ranks(Engine()) as world:
        return prepare(source_at(Path(prompts)), Path(model), Path(out), FAST, world).made


@pytest.mark.slow
def test_ranks_share_the_work(wan: Path, by_teacher: Path, tmp_path: Path) -> None:
    arguments = [str(by_teacher.parent / "prompts.txt"), str(wan), str(tmp_path / "data")]
    assert call(2, "tests.foundation.test_prepare", "prepare_on_ranks", *arguments) == [5, 5]
    assert contents(tmp_path / "data") == contents(by_teacher)


# what it refuses


def test_another_preparation_is_not_mixed(wan: Path, by_teacher: Path, tmp_path: Path) -> None:
    source = source_at(by_teacher.parent / "prompts.txt")
    before = contents(by_teacher)
    for options, message in (
        (dataclasses.replace(FAST, seed=1), r"another preparation: teacher.seed = 0, now 1; choose another folder$"),
        (dataclasses.replace(FAST, negative_prompt=""), "negative_prompt = 'bad', now ''"),
        (dataclasses.replace(FAST, size=(32, 48)), "sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(source, wan, by_teacher, options)
    with pytest.raises(ValueError, match="source = "):
        prepare(source_at(prompts_file(tmp_path, ["another"])), wan, by_teacher, FAST)
    assert contents(by_teacher) == before
    begun = shutil.copytree(by_teacher, tmp_path / "begun")
    (begun / "samples_00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"or delete it: it is not finished, samples_00001.safetensors is missing"):
        prepare(source, wan, begun, dataclasses.replace(FAST, seed=1))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "latents_0.safetensors").write_bytes(b"theirs")
    with pytest.raises(ValueError, match=r"holds latents_0.safetensors, which no preparation left here"):
        prepare(source, wan, tmp_path / "theirs", FAST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": None}, "guidance_scale = None for prompts alone, of which the teacher makes the data"),
        ({"guidance_scale": 0.0}, "guidance_scale = 0.0, expected a number above 0"),
        ({"size": (30,)}, r"size = 30 x 30 \(height x width\), expected multiples of 16"),
        ({"size": (16, 16, 16)}, r"size = \(16, 16, 16\), expected a side, or height and width"),
        ({"buckets": True}, "buckets = True for prompts alone"),
        ({"steps": 0}, "steps = 0, expected at least 1"),
        ({"seed": -1}, "seed = -1, expected at least 0"),
        ({"batch_size": 0}, "batch_size = 0, expected at least 1"),
    ],
)
def test_bad_options(wan: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(source_at(prompts_file(tmp_path)), wan, tmp_path / "data", dataclasses.replace(FAST, **changes))
    assert not (tmp_path / "data").exists()


def test_several_sizes_need_buckets(wan: Path, tmp_path: Path) -> None:
    source = source_at(photos(tmp_path / "photos"))
    with pytest.raises(ValueError, match=r"have 5 sizes, such as 32 x 64 \(2\), .*expected buckets = True"):
        prepare(source, wan, tmp_path / "data", Options())
    summary = prepare(source, wan, tmp_path / "data", Options(size=(48,)))
    assert [(b.height, b.width, b.n) for b in summary.manifest.buckets] == [(48, 48, 6)]
    assert summary.enlarged == 0


def test_a_broken_picture_is_named(wan: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", [(32, 32)] * 3)
    (folder / "b" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"b/1.png: unreadable image"):
        prepare(source_at(folder), wan, tmp_path / "data", Options(size=(32,)))
    with pytest.raises(ValueError, match=r"b/1.png: unreadable image"):
        prepare(source_at(folder), wan, tmp_path / "other", Options())


def test_latents_that_are_not_finite_name_the_prompt(
    wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "euler", lambda f, t, x_0, *rest: x_0 * float("nan"))
    with pytest.raises(ValueError, match="the latents of 'a red fox' are not finite"):
        prepare(source_at(prompts_file(tmp_path)), wan, tmp_path / "data", FAST)


def test_data_of_another_model(wan: Path, by_teacher: Path, tmp_path: Path) -> None:
    other = shutil.copytree(wan, tmp_path / "other")
    config = other / "text_encoder" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ValueError, match=r"was prepared by another model than .*: text_encoder [0-9a-f]{16}"):
        check_made_by(read_manifest(by_teacher), open_model(other), by_teacher)


# damage


def damage_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "opens", "message"),
    [
        (lambda f: damage_byte(f / "samples_00000.safetensors", -1), True, "samples_00000.safetensors: sha256"),
        (lambda f: damage_byte(f / "prompts_00001.safetensors", -1), True, "prompts_00001.safetensors: sha256"),
        (lambda f: damage_byte(f / "null.safetensors", -1), True, "is not the embedding of the negative prompt"),
        (lambda f: (f / "samples_00001.safetensors").unlink(), False, "samples_00001.safetensors is missing"),
        (lambda f: (f / "prompts_00001.safetensors").write_bytes(b""), False, "has 0 bytes, expected"),
        (lambda f: shutil.copy(f / "null.safetensors", f / "samples_9.safetensors"), True, "is not named in manifest"),
        (lambda f: edited(f / "manifest.json", n=4), False, "changed since it was written"),
        (lambda f: edited(f / "manifest.json", format="x"), False, "format = 'x', expected 'facm-captions-1'"),
        (lambda f: (f / "manifest.json").write_text("[]"), False, "not the manifest of prepared data"),
    ],
)
def test_verify_says_all_that_is_wrong(by_teacher: Path, tmp_path: Path, damage, opens, message) -> None:  # type: ignore[no-untyped-def]
    folder = shutil.copytree(by_teacher, tmp_path / "data")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        verify(folder)
    if not opens:
        with pytest.raises(ValueError, match=message):
            Captioned(str(folder)).open()


def test_a_damaged_sample_is_noticed_when_it_is_read(by_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(by_teacher, tmp_path / "data")
    shard = read_shard(folder / "prompts_00000.safetensors", PROMPT_FILES)
    damage_byte(shard.path, shard.places["part.embeddings"])
    dataset = Captioned(str(folder)).open()
    dataset.read(np.array([1]))
    with pytest.raises(ValueError, match=r"prompts_00000.safetensors: damaged: row 0 is not the one that was written"):
        dataset.read(np.array([0, 1]))

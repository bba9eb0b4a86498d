"""The text demo: its pipeline is diffusers' own and nearly the identity, and one command leads from nothing to it."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from facm import cli
from facm.evaluation.classifier import SmallClassifier
from facm.runs.config import Intervals
from facm.studies.text_demo import demo, runs
from facm.studies.text_demo.captions import WORDINGS, all_captions, caption, captions_of
from facm.studies.text_demo.measure import Prompts

pytest.importorskip("diffusers")

TINY = 64
"""Images that a run sees."""


@pytest.fixture(scope="module")
def pipe():
    from facm.studies.text_demo.pipeline import new_pipeline

    return new_pipeline(-0.4, 0.75)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, what was printed): one finished demo of few images, samples and digits."""
    import contextlib
    import io

    def shortened(recipe):
        def short(*arguments, **options):
            run = recipe(*arguments, images=TINY, **options)
            return dataclasses.replace(run, batch_size=16, every=Intervals(log=16, checkpoint=TINY, ema_snapshots=0))

        return short

    out, said = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(said):
        patched.setenv("FACM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setattr(demo, "text_teacher", shortened(runs.text_teacher))
        patched.setattr(demo, "text_student", shortened(runs.text_student))
        patched.setattr(demo, "TEACHER_NFE", (1, 2))
        patched.setattr(demo, "SAMPLES", 40)
        patched.setattr(demo, "cores_for_two", lambda: False)  # another process takes seconds to start
        patched.setattr(demo, "DIGITS", 40)
        patched.setattr("facm.evaluation.evaluator.SmallClassifier", functools.partial(SmallClassifier, epochs=1))
        cli.main(["demo", "text", "--out", str(out)])
    return out, said.getvalue()


def wordings(label):
    return {caption(label, k) for k in range(len(WORDINGS))}


def test_the_autoencoder_is_the_identity_of_gray_pixels(pipe):
    x = torch.rand(3, 1, 1, 8, 8) * 2 - 1
    latents = pipe.vae.encode(x.expand(3, 3, 1, 8, 8)).latent_dist.mode()
    assert latents.shape == (3, 1, 1, 8, 8)
    assert (latents - x).abs().max() < 1e-4
    assert (pipe.vae.decode(x)[0] - x).abs().max() < 2e-4


def test_the_latents_have_the_deviation_of_noise(pipe):
    from facm.foundation.families.table import family_of

    x = -0.4 + 0.75 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    family = family_of("QwenImagePipeline", "here")
    with torch.no_grad():
        latents = family.to_latents(pipe.vae, x.expand(64, 3, 8, 8))
    assert abs(float(latents.mean())) < 0.05
    assert abs(float(latents.std()) - 1) < 0.05


def test_every_word_of_a_caption_is_one_token_and_captions_differ(pipe):
    embeddings, mask = pipe.encode_prompt(all_captions())
    assert embeddings.shape[1] == 5  # four words at most, and what follows a prompt
    texts = embeddings.flatten(1)
    distances = torch.cdist(texts, texts) + torch.eye(len(texts)) * 1e3
    assert distances.min() > 0.1
    assert mask.sum(1).min() == 2


def test_the_pipeline_draws_pictures_with_and_without_guidance(pipe):
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 8, "width": 8, "num_inference_steps": 1, "output_type": "np"}
    assert pipe("a handwritten seven", **call).images.shape == (1, 8, 8, 3)
    assert pipe("3", negative_prompt="", true_cfg_scale=2.0, **call).images.shape == (1, 8, 8, 3)


def test_captions_are_functions_of_the_seed_and_name_their_digit():
    labels = np.arange(200) % 10
    texts = captions_of(labels, seed=3)
    assert texts == captions_of(labels, seed=3) != captions_of(labels, seed=4)
    assert all(
        text in {caption(label, k) for k in range(len(WORDINGS))} for label, text in zip(labels, texts, strict=True)
    )
    assert len(set(all_captions())) == 10 * len(WORDINGS)


def test_a_sample_has_a_prompt_of_its_own_digit():
    prompts = Prompts(all_captions(), None)
    for i, label in enumerate(prompts.labels(range(60)).tolist()):
        assert prompts.text(range(i, i + 1))[0] in wordings(label)
    assert sorted(prompts.text(range(60))) == sorted(all_captions())


@pytest.mark.slow
def test_the_summary_has_a_row_for_the_teacher_and_each_student(done):
    summary = json.loads((done[0] / "summary.json").read_text())
    found = {(row["who"], row["steps"]) for row in summary["rows"]}
    card = (done[0] / "lora-student" / "README.md").read_text()
    assert "height=8, width=8" in card
    assert "mostly 8 x 8 pixels" in card
    students = {(who, nfe) for who in ("LoRA", "all weights") for nfe in (1, 2, 4)}
    assert found == {("teacher", 1), ("teacher", 2)} | students
    assert all(np.isfinite(row["frechet_distance"]) for row in summary["rows"])
    assert summary["seconds"].keys() == {"prepare", "teacher", "lora", "full", "evaluate", "total"}


@pytest.mark.slow
def test_diffusers_draws_what_facm_draws(done):
    assert json.loads((done[0] / "summary.json").read_text())["stock_difference"] < 1e-4


@pytest.mark.slow
def test_report_and_pictures_are_complete(done):
    page = (done[0] / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("data:image/png") == 2
    assert Image.open(done[0] / "samples.png").width > 1000
    assert "report" in done[1]


@pytest.mark.slow
def test_a_finished_demo_is_shown_again(done, capsys):
    before = {path: path.stat().st_mtime_ns for path in done[0].rglob("*") if path.is_file()}
    cli.main(["demo", "text", "--out", str(done[0])])
    assert "finished demo" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in done[0].rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_another_seed_or_another_demo_is_refused(done):
    with pytest.raises(SystemExit):
        cli.main(["demo", "text", "--out", str(done[0]), "--seed", "1"])
    with pytest.raises(SystemExit):
        cli.main(["demo", "--out", str(done[0])])

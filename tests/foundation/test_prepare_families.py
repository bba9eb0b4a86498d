"""Data that the teacher makes, for each family: the latents of the pipeline's own call from the same noise."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from facm.foundation import Captioned, Captions
from facm.foundation.folder import load_pipeline, open_model
from facm.foundation.prepare.pipeline import prepare
from facm.foundation.prepare.sources import source_at
from facm.foundation.prepare.verify import verify
from facm.sampling.generate import noise
from tests.foundation.prepared_parts import FAST, prompts_file
from tests.foundation.tiny_pipelines_parts import MAKERS, saved

TEXTS = ["a red fox", "a blue fish in the deep sea", "seven"]
TOLD = ("flux-dev", "flux2")
"""Models that are told their guidance."""
UNGUIDED = (*TOLD, "flux-schnell", "flux2-klein")
TOLERANCE = 2e-5
"""Of the largest latent: three steps in float32, in batches of other sizes and lengths."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_the_teacher_makes_what_its_pipeline_makes(kind: str, tmp_path: Path) -> None:
    model = open_model(saved(kind, tmp_path / kind))
    pipe = load_pipeline(model, list(model.parts))
    side = 2 * model.family.multiple(pipe)
    options = dataclasses.replace(
        FAST,
        size=(side,),
        steps=3,
        guidance_scale=1.0 if kind in UNGUIDED else 3.0,
        embedded_guidance=2.5 if kind in TOLD else None,
    )
    prepare(source_at(prompts_file(tmp_path, TEXTS)), model.path, tmp_path / "data", options)
    verify(tmp_path / "data")
    dataset = Captioned(str(tmp_path / "data")).open()
    batch = dataset.read(np.arange(3))
    Captions(str(tmp_path / "data")).check(batch.cond, 3)
    x_0 = noise(0, range(3), 0, dataset.shape)
    made = pipe(
        prompt=list(TEXTS),
        height=side,
        width=side,
        num_inference_steps=3,
        latents=model.family.packed(x_0),
        output_type="latent",
        return_dict=False,
        **model.family.call_arguments(),
        **guided(kind),
    )[0]
    expected = model.family.from_pipeline(pipe, made, dataset.shape)
    torch.testing.assert_close(batch.x_1, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    assert float((expected - x_0).abs().mean()) > 0.3
    assert dataset.decoder(torch.device("cpu"))(batch.x_1[:1]).shape == (1, 3, side, side)


def guided(kind: str) -> dict[str, Any]:
    """Arguments of the pipeline's call that guide as the data were made."""
    if kind in UNGUIDED:
        return {"guidance_scale": 2.5 if kind in TOLD else 1.0}
    scale = "true_cfg_scale" if kind == "qwen_image" else "guidance_scale"
    return {scale: 3.0, "negative_prompt": ["bad"] * 3}

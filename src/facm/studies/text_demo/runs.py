"""The runs of the text demo: a teacher by flow matching, and its students, all weights or adapters.

They are ``facm finetune`` and ``facm distill`` with the learning rates of a tiny network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from facm.flow.guidance import Guidance
from facm.flow.times import ArctanLogNormal
from facm.recipes.text_to_image import distill, finetune
from facm.runs.config import Intervals, Run
from facm.runs.optim import AdamW, CosineDecay

GUIDANCE = Guidance(2.0, low=0.0)
SMOOTH = 100.0
"""Radians per unit of t: without faster sinusoids the tangent is a fraction, and the flow the same."""
RANK = 16
TIME = ArctanLogNormal(0.0, 1.6)
"""Nearer to noise than the paper's: most of one step's error is made there."""
EVERY = Intervals(log=2_560, checkpoint=51_200, ema_snapshots=0)


def text_teacher(model: Path, data: Path, images: int = 230_400, seed: int = 0) -> Run:
    """The whole transformer of ``model`` by flow matching on the captions, half of the samples at c_FM, so that
    students begin with their anchor learned (App. A.3 a), and without the fast sinusoids, so that students lose nothing
    by doing without them; a tenth of the captions are dropped, for guidance."""
    return replace(
        finetune(str(model), str(data), images=images, batch_size=128, smooth=SMOOTH, seed=seed),
        optimizer=AdamW(lr=6e-3, betas=(0.9, 0.99), warmup_images=6_400, decay=CosineDecay(0.02)),
        every=EVERY,
    )


def text_student(model: Path, data: Path, lora: bool, images: int = 51_200, seed: int = 0) -> Run:
    """A FACM student of ``model`` with the guidance baked in: adapters, or all weights."""
    run = distill(
        str(model),
        str(data),
        lora_rank=RANK if lora else 0,
        guidance_scale=GUIDANCE.scale,
        images=images,
        smooth=SMOOTH,
        seed=seed,
    )
    rate = 6e-4 if lora else 3e-4
    return replace(
        run,
        objective=replace(run.objective, time=TIME),
        optimizer=AdamW(lr=rate, betas=(0.9, 0.99), warmup_images=3_200, decay=CosineDecay(0.05)),
        every=EVERY,
    )

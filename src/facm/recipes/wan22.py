"""Wan 2.2 A14B, text to image, by few steps: our settings, for the paper's text gives none.

facm prepare --prompts prompts.txt --model ./Wan2.2 --guidance-scale 4 --guidance-scale-2 3 --out data/wan
facm train wan2.2-t2i --model ./Wan2.2 --data data/wan --out runs/wan
"""

from __future__ import annotations

from pathlib import Path

from facm.foundation.captions.origin import scales_of
from facm.recipes import text_to_image
from facm.runs.config import Run


def wan22_t2i(
    model: str = "Wan2.2-T2V-A14B-Diffusers",
    data: str = "data/wan",
    student: str = "one",
    lora_rank: int = 64,
    guidance_scale: float = 0.0,
    guidance_scale_2: float = 0.0,
    shift: float = 12.0,
    images: int = 128_000,
    batch_size: int = 64,
    lr: float = 1e-4,
    smooth: float = 0.0,
    base: str = "bf16",
    resident: str = "both",
    seed: int = 0,
) -> Run:
    """Distil Wan 2.2 A14B, two experts, into one student of 1 to 8 steps or a pair of 2 to 8 (our settings).

    Args:
        model: Folder of the model, with model_index.json.
        data: Folder that facm prepare wrote with this model.
        student: one for all times, or half of a pair, high-noise or low-noise.
        lora_rank: Rank of adapters, which are trained in place of the weights; 0 trains all weights (with base fp32).
        guidance_scale: Guidance of the expert of high noise as the pipeline's call counts it; 0: what the data were
            made with, or 4; 1: none.
        guidance_scale_2: Guidance of the expert of low noise; 0: what the data were made with, or 3; 1: none.
        shift: Shift of the training times as the pipeline's scheduler counts it; that of a pair is within its half.
        images: Length of the run in images seen.
        batch_size: Images in one step, over all ranks and micro-batches.
        lr: Learning rate after the warm-up.
        smooth: Highest frequency of the time embedding that the student keeps, in radians per unit of t; 0 keeps all.
        base: Type of the base's weights under adapters: bf16, or fp32.
        resident: Which experts are on the device: both, or one where memory is short.
        seed: Seed of all random numbers of the run.
    """
    first, second = scales_of(Path(data).expanduser())
    return text_to_image.distill(
        model=model,
        data=data,
        lora_rank=lora_rank,
        guidance_scale=guidance_scale or first or 4.0,
        images=images,
        batch_size=batch_size,
        lr=lr,
        smooth=smooth,
        base=base,
        student=student,
        guidance_scale_2=guidance_scale_2 or second or 3.0,
        shift=shift if student == "one" else 1.0,
        resident=resident,
        seed=seed,
    )

"""Any text-to-image model of diffusers, on one's own prompts or pictures: distilled, or fine-tuned first.

facm prepare --prompts prompts.txt --model ./Z-Image --out data/z
facm distill ./Z-Image --data data/z --lora-rank 64
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.velocity import TeacherVelocity
from facm.foundation import Captioned, Captions, DiffusersModel, FromModel, LoRA, OwnBase
from facm.foundation.captions.origin import check_origin
from facm.foundation.folder import TRANSFORMER, ModelFolder, open_model
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals, Run
from facm.runs.ema import PowerEMA
from facm.runs.optim import AdamW


def distill(
    model: str = "model",
    data: str = "data/prompts",
    lora_rank: int = 0,
    guidance_scale: float = 4.0,
    images: int = 128_000,
    batch_size: int = 64,
    lr: float = 1e-4,
    smooth: float = 0.0,
    embedded_guidance: float = -1.0,
    base: str = "fp32",
    teacher: str = "",
    seed: int = 0,
) -> Run:
    """Distil a text-to-image model of diffusers into a student of 1 to 8 steps.

    Args:
        model: Folder of the model, with model_index.json.
        data: Folder that facm prepare wrote with this model.
        lora_rank: Rank of adapters, which are trained in place of the weights; 0 trains all weights.
        guidance_scale: Guidance of the teacher as its pipeline's call counts it; the student has learned it in the end.
        images: Length of the run in images seen.
        batch_size: Images in one step, over all ranks and micro-batches.
        lr: Learning rate after the warm-up.
        smooth: Highest frequency of the time embedding that the student keeps, in radians per unit of t; 0 keeps all.
            facm distill ... --probe recommends it.
        embedded_guidance: Guidance that the transformer is told, where its family has that (FLUX.1-dev: 3.5).
        base: Type of the base's weights under adapters: fp32, or bf16, which takes half of the memory.
        teacher: Run of facm finetune to distil in place of the model itself; without adapters only.
        seed: Seed of all random numbers of the run.
    """
    network = _network(model, data, lora_rank, smooth, embedded_guidance, base, seed)
    if teacher and lora_rank:
        raise ValueError(
            f"teacher = {teacher!r} with lora_rank = {lora_rank}: adapters are added to the model itself, expected "
            "lora_rank = 0 with a run as the teacher"
        )
    opened = _opened(model)
    scale = guidance_scale if opened is None else opened.family.scale(guidance_scale)
    guidance = Guidance(scale, low=0.0) if scale > 1 else NO_GUIDANCE
    source = FromRun(teacher) if teacher else None
    return Run(
        network=network,
        data=Captioned(data, model),
        objective=FACM(Captions(data), TeacherVelocity(guidance, at_anchor=bool(teacher))),
        images=images,
        batch_size=batch_size,
        optimizer=AdamW(lr=lr, warmup_images=min(10 * batch_size, images)),
        ema=PowerEMA((0.05, 0.2)),
        teacher=source or (OwnBase() if lora_rank else FromModel(replace(network, smooth=None))),
        initial=source,
        every=Intervals(log=10 * batch_size, checkpoint=100 * batch_size, ema_snapshots=0),
        seed=seed,
    )


def finetune(
    model: str = "model",
    data: str = "data/prompts",
    lora_rank: int = 0,
    images: int = 128_000,
    batch_size: int = 64,
    lr: float = 1e-5,
    caption_dropout: float = 0.1,
    smooth: float = 0.0,
    embedded_guidance: float = -1.0,
    base: str = "fp32",
    seed: int = 0,
) -> Run:
    """Fine-tune a text-to-image model by flow matching, half of the samples at c_FM, so that it can teach (App. A.3 a).

    Args:
        model: Folder of the model, with model_index.json.
        data: Folder that facm prepare wrote with this model.
        lora_rank: Rank of adapters, which are trained in place of the weights; 0 trains all weights.
        images: Length of the run in images seen.
        batch_size: Images in one step, over all ranks and micro-batches.
        lr: Learning rate after the warm-up.
        caption_dropout: Fraction of samples trained without their caption, for guidance.
        smooth: Highest frequency of the time embedding that is kept, in radians per unit of t; 0 keeps all. Students of
            a teacher that learned to do without the fast ones can be smoothed as much, and lose nothing by it.
        embedded_guidance: Guidance that the transformer is told, where its family has that (FLUX.1-dev: 3.5).
        base: Type of the base's weights under adapters: fp32, or bf16, which takes half of the memory.
        seed: Seed of all random numbers of the run.
    """
    return Run(
        network=_network(model, data, lora_rank, smooth, embedded_guidance, base, seed),
        data=Captioned(data, model),
        objective=FlowMatching(Captions(data), label_dropout=caption_dropout),
        images=images,
        batch_size=batch_size,
        optimizer=AdamW(lr=lr, warmup_images=min(10 * batch_size, images)),
        ema=PowerEMA((0.05, 0.2)),
        every=Intervals(log=10 * batch_size, checkpoint=100 * batch_size, ema_snapshots=0),
        seed=seed,
    )


def _network(
    model: str, data: str, lora_rank: int, smooth: float, embedded_guidance: float, base: str, seed: int
) -> DiffusersModel:
    if base == "bf16" and not lora_rank:
        raise ValueError(
            "base = 'bf16' with lora_rank = 0: steps of the learning rate round to nothing in bf16; expected adapters, "
            "or base = 'fp32' (computing in bf16 is --precision bf16)"
        )
    opened = _opened(model)
    if opened is not None and Path(data).expanduser().exists():
        check_origin(Path(data).expanduser(), opened)
    return DiffusersModel(
        model,
        LoRA(lora_rank) if lora_rank else None,
        smooth or None,
        None if embedded_guidance < 0 else embedded_guidance,
        base,  # type: ignore[arg-type]  # checked there
        None if opened is None else opened.identity(TRANSFORMER)[TRANSFORMER],
        seed,
    )


def _opened(model: str) -> ModelFolder | None:
    """The model; None where there is no such folder, so that a recipe can be shown before there is: it is then refused
    when its parts are checked, before anything is written."""
    path = Path(model).expanduser()
    return open_model(path) if path.exists() else None

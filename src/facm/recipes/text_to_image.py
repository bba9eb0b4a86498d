"""Any text-to-image model of diffusers, on one's own prompts or pictures: distilled, or fine-tuned first.

facm prepare --prompts prompts.txt --model ./Z-Image --out data/z
facm distill ./Z-Image --data data/z --lora-rank 64
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.phases import Phases
from facm.flow.times import ArctanLogNormal, Shifted, Sorted, TimeDistribution
from facm.flow.two_experts import TwoScales
from facm.flow.velocity import TeacherVelocity
from facm.foundation import Captioned, Captions, DiffusersModel, FromExperts, FromModel, LoRA, OtherExpert, OwnBase
from facm.foundation.captions.origin import check_origin, scales_of
from facm.foundation.experts.students import EXPERTS, PARTS, check_student, phases_of
from facm.foundation.folder import SECOND, TRANSFORMER, ModelFolder, Part, open_model
from facm.foundation.prepare.guidance import check_second
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals, Pretrained, Run, WithinStudent
from facm.runs.ema import PowerEMA
from facm.runs.optim import AdamW

USUAL_SCALE = 4.0
"""Guidance where neither the user nor the data say any."""
BOUNDARY = 0.875
"""Of Wan 2.2 T2V-A14B, where there is no folder yet that says it."""


def distill(
    model: str = "model",
    data: str = "data/prompts",
    lora_rank: int = 0,
    guidance_scale: float = 0.0,
    images: int = 128_000,
    batch_size: int = 64,
    lr: float = 1e-4,
    smooth: float = 0.0,
    embedded_guidance: float = -1.0,
    base: str = "fp32",
    teacher: str = "",
    student: str = "one",
    guidance_scale_2: float = 0.0,
    shift: float = 1.0,
    resident: str = "both",
    seed: int = 0,
) -> Run:
    """Distil a text-to-image model of diffusers into a student of 1 to 8 steps.

    Args:
        model: Folder of the model, with model_index.json.
        data: Folder that facm prepare wrote with this model.
        lora_rank: Rank of adapters, which are trained in place of the weights; 0 trains all weights.
        guidance_scale: Guidance of the teacher as its pipeline's call counts it; the student has learned it in the end.
            0: what the data were made with, or 4 for pictures; 1: none.
        images: Length of the run in images seen.
        batch_size: Images in one step, over all ranks and micro-batches.
        lr: Learning rate after the warm-up.
        smooth: Highest frequency of the time embedding that the student keeps, in radians per unit of t; 0 keeps all.
            facm distill ... --probe recommends it.
        embedded_guidance: Guidance that the transformer is told, where its family has that (FLUX.1-dev: 3.5).
        base: Type of the base's weights under adapters: fp32, or bf16, which takes half of the memory.
        teacher: Run of facm finetune to distil in place of the model itself; without adapters only.
        student: Of a model of two experts: one for all times, or half of a pair, high-noise or low-noise.
        guidance_scale_2: Of a model of two experts: guidance of that of low noise; 0: what the data were made with, or
            guidance_scale.
        shift: Shift of the training times as the pipeline's scheduler counts it; above 1 trains more at high noise.
        resident: Of a model of two experts: which are on the device, both, or one where memory is short.
        seed: Seed of all random numbers of the run.
    """
    opened, (first, second) = _opened(model), scales_of(Path(data).expanduser())
    boundary = _boundary(opened, model, student, guidance_scale_2, resident)
    guidance_scale, guidance_scale_2 = guidance_scale or first or USUAL_SCALE, guidance_scale_2 or second
    part = TRANSFORMER if boundary is None else PARTS[student]
    network = _network(model, data, lora_rank, smooth, embedded_guidance, base, seed, part)
    if teacher and boundary is not None:
        raise ValueError(
            f"teacher = {teacher!r} with a model of two experts, expected none: they teach together. Runs of facm "
            "finetune --expert teach as a model: facm export LOW --high-noise HIGH --to diffusers --out MODEL"
        )
    if teacher and lora_rank:
        raise ValueError(
            f"teacher = {teacher!r} with lora_rank = {lora_rank}: adapters are added to the model itself, expected "
            "lora_rank = 0 with a run as the teacher"
        )
    if shift <= 0:
        raise ValueError(f"shift = {shift}, expected a number above 0; 1 is none")
    source = FromRun(teacher) if teacher else None
    return Run(
        network=network,
        data=Captioned(data, model),
        objective=FACM(
            Captions(data),
            TeacherVelocity(
                _guidance(opened, boundary, student, guidance_scale, guidance_scale_2), at_anchor=bool(teacher)
            ),
            time=_time(shift, several_experts=boundary is not None and student == "one"),
            phases=Phases() if boundary is None else phases_of(student, boundary),
        ),
        images=images,
        batch_size=batch_size,
        optimizer=AdamW(lr=lr, warmup_images=min(10 * batch_size, images)),
        ema=PowerEMA((0.05, 0.2)),
        teacher=source or _teacher(network, opened, None if student != "one" else boundary, resident),
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
    expert: str = "",
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
        smooth: Highest frequency of the time embedding that is kept, in radians per unit of t; 0 keeps all. Then
            smooth its students as much, at no loss.
        embedded_guidance: Guidance that the transformer is told, where its family has that (FLUX.1-dev: 3.5).
        base: Type of the base's weights under adapters: fp32, or bf16, which takes half of the memory.
        expert: Of a model of two experts: which is fine-tuned, high-noise or low-noise, at its own times.
        seed: Seed of all random numbers of the run.
    """
    opened = _opened(model)
    boundary = BOUNDARY if opened is None else opened.boundary
    if boundary is None and expert:
        raise ValueError(f"expert = {expert!r} with {model}, which has one transformer, expected none")
    if expert not in ("", *EXPERTS):
        raise ValueError(f"expert = {expert!r}, expected {' or '.join(EXPERTS)}")
    if opened is not None and boundary is not None and not expert:
        raise ValueError(
            f"model = {model!r} has two experts, each of which is fine-tuned in a run of its own: expected expert = "
            f"{' or '.join(map(repr, EXPERTS))}"
        )
    part = PARTS[expert] if expert else TRANSFORMER
    return Run(
        network=_network(model, data, lora_rank, smooth, embedded_guidance, base, seed, part),
        data=Captioned(data, model),
        objective=FlowMatching(
            Captions(data),
            label_dropout=caption_dropout,
            phases=phases_of(expert, boundary) if expert and boundary is not None else Phases(),
        ),
        images=images,
        batch_size=batch_size,
        optimizer=AdamW(lr=lr, warmup_images=min(10 * batch_size, images)),
        ema=PowerEMA((0.05, 0.2)),
        every=Intervals(log=10 * batch_size, checkpoint=100 * batch_size, ema_snapshots=0),
        seed=seed,
    )


def _network(
    model: str, data: str, lora_rank: int, smooth: float, embedded_guidance: float, base: str, seed: int, part: Part
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
        _hash(opened, part),
        seed,
        part,
    )


def _hash(opened: ModelFolder | None, part: Part) -> str | None:
    return None if opened is None else opened.identity(part)[part]


def _boundary(
    opened: ModelFolder | None, model: str, student: str, guidance_scale_2: float, resident: str
) -> float | None:
    """Where the model's experts meet; None for one transformer. Raises ValueError for options of two experts then."""
    check_student(student)
    two = student != "one" or guidance_scale_2 != 0 or resident != "both"
    if opened is None:
        return BOUNDARY if two else None
    if two and opened.boundary is None:
        raise ValueError(
            f"student = {student!r}, guidance_scale_2 = {guidance_scale_2:g}, resident = {resident!r}, and {model} has "
            "one transformer: expected 'one', 0 and 'both', or a model of two experts"
        )
    return opened.boundary


def _guidance(
    opened: ModelFolder | None, boundary: float | None, student: str, guidance_scale: float, guidance_scale_2: float
) -> Guidance:
    """The teacher's guidance, of the expert that this student learns from, or of both."""
    first, second = guidance_scale, guidance_scale_2 or guidance_scale
    if opened is not None:
        if boundary is not None:
            second = check_second(first, second, opened) or first
        first, second = opened.family.scale(first), opened.family.scale(second)
    if boundary is not None and student == "one" and max(first, second) > 1:
        return TwoScales(max(first, 1.0), scale_2=max(second, 1.0), boundary=boundary)
    scale = second if student == "low-noise" else first
    return Guidance(scale, low=0.0) if scale > 1 else NO_GUIDANCE


def _time(shift: float, several_experts: bool) -> TimeDistribution:
    time: TimeDistribution = ArctanLogNormal(-0.8, 1.6)
    if shift != 1:
        time = Shifted(time, 1 / shift)
    return Sorted(time) if several_experts else time


def _teacher(
    network: DiffusersModel, opened: ModelFolder | None, boundary: float | None, resident: str
) -> Pretrained | WithinStudent:
    """Adapters learn from their own base. boundary: where a second expert teaches the later times; None: there is
    none, or the student does not reach its times."""
    plain = replace(network, lora=None, smooth=None)
    if boundary is None:
        return OwnBase() if network.lora is not None else FromModel(replace(network, smooth=None))
    high = replace(plain, part=TRANSFORMER, sha256=_hash(opened, TRANSFORMER))
    if network.lora is not None:
        return OtherExpert(high, resident)  # type: ignore[arg-type]  # checked there
    return FromExperts(high, replace(plain, part=SECOND, sha256=_hash(opened, SECOND)), resident)  # type: ignore[arg-type]


def _opened(model: str) -> ModelFolder | None:
    """The model; None where there is no such folder, so that a recipe can be shown before there is: it is then refused
    when its parts are checked, before anything is written."""
    path = Path(model).expanduser()
    return open_model(path) if path.exists() else None

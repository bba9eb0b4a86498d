"""Students of a model of two experts: what goes where in a pipeline, and what a model card says about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from facm.flow.phases import WHOLE
from facm.flow.two_experts import just_above
from facm.foundation.experts.pair import TrainedPair
from facm.foundation.export.student import Student, student_of
from facm.foundation.folder import SECOND, TRANSFORMER

HALVES = {TRANSFORMER: "high_noise", SECOND: "low_noise"}
"""Part of a pair -> folder of its adapters."""


def student_of_pair(pair: TrainedPair) -> Student:
    """Both halves as one student. Raises ValueError for what are no models of diffusers."""
    assert pair.low is not None
    assert pair.high is not None
    low, high = student_of(pair.low), student_of(pair.high)
    of_high = {
        "run_high_noise": high.origin["run"],
        "weights_high_noise": high.origin["weights"],
        "images_seen_high_noise": high.origin["images_seen"],
        "checkpoint_sha256_high_noise": high.origin["checkpoint_sha256"],
        "base_transformer_high_noise": high.origin["base_transformer"],
        "lora_rank_high_noise": high.origin["lora_rank"],
        "smooth_high_noise": high.origin["smooth"],
    }
    return replace(low, origin=low.origin | of_high, bounds=pair.interface.bounds, high=high.network)


def index_entries(student: Student) -> dict[str, Any]:
    """What changes in model_index.json: a student of all times is a pipeline of one transformer, without a boundary."""
    if student.model.boundary is None:
        return {}
    if student.high is None:
        return {SECOND: [None, None], "boundary_ratio": None}
    if not student.few_step:
        return {}  # fine-tuned experts meet where they did
    return {"boundary_ratio": boundary_ratio(student)}


def boundary_ratio(student: Student) -> float:
    """A little above the noise level where the halves meet: the step that is exactly there is of the low-noise half,
    and ``>=`` would give it to the other."""
    return just_above(1 - student.bounds[1])


def opening(student: Student, name: str) -> list[str]:
    """Lines of Python that open the model with the adapters in the folder ``name``."""
    base = student.origin["base"]
    if student.high is not None:
        return [
            f'pipe = DiffusionPipeline.from_pretrained("{base}", torch_dtype=torch.bfloat16).to("cuda")',
            f'pipe.load_lora_weights("{name}/{HALVES[TRANSFORMER]}")',
            f'pipe.load_lora_weights("{name}/{HALVES[SECOND]}", load_into_transformer_2=True)',
            *([f"pipe.register_to_config(boundary_ratio={boundary_ratio(student)!r})"] if student.few_step else []),
        ]
    kind = student.model.family.transformer
    return [
        f"from diffusers import {kind}",
        "",
        f'one = {kind}.from_pretrained("{base}", subfolder="{student.network.part}", torch_dtype=torch.bfloat16)',
        f'pipe = DiffusionPipeline.from_pretrained("{base}", transformer=one, transformer_2=None, '
        "torch_dtype=torch.bfloat16)",
        "pipe.register_to_config(boundary_ratio=None)  # one network for all noise levels",
        'pipe.to("cuda")',
        f'pipe.load_lora_weights("{name}")',
    ]


def other_numbers(student: Student) -> str:
    """Which numbers of steps a student of several phases has, and how."""
    phases = len(student.bounds) - 1
    return (
        f"At least {phases} steps, one in each of its phases, up to 8. With {phases} each jump leads to the next noise "
        "level, without fresh noise, so that diffusers' FlowMatchEulerDiscreteScheduler does it; for more, noise is "
        f"added within a phase and not from one to the next, which this package's scheduler does where facm is "
        "installed:\n\n```python\nfrom facm.foundation.export.phased_scheduler import PhasedScheduler\n\n"
        f"pipe.scheduler = PhasedScheduler(bounds={list(student.bounds)})\n```"
    )


def is_phased(student: Student) -> bool:
    """Whether it jumps to ends of phases rather than to data."""
    return student.bounds != WHOLE

"""The model card of an export: what it is, where it comes from, and the calls to copy."""

from __future__ import annotations

import json
from typing import Any, Literal

from facm.foundation.export.experts import is_phased, opening, other_numbers
from facm.foundation.export.schedule import Kind, call_arguments, class_of, levels_by, stock_settings
from facm.foundation.export.student import Student

Form = Literal["diffusers", "lora"]


def card(student: Student, form: Form, num_steps: int, kind: Kind, name: str, said: str = "") -> str:
    """README.md in Markdown. name: of the folder; said: a sentence about the adapters."""
    what = "few-step student" if student.few_step else "fine-tuned model"
    base = student.origin["base"]
    parts = [
        _front(student, form),
        f"# {name}",
        f"A {what} of {base} ({student.model.pipeline}), trained with facm"
        + (" by Flow-Anchored Consistency Models (Peng et al., 2025)." if student.few_step else ".")
        + (" These are adapters (LoRA) for that model." if form == "lora" else "")
        + (f" {said}" if said else ""),
        *(_few_steps(student, form, num_steps, kind, name) if student.few_step else _as_before(student, form, name)),
        "## Origin",
        _origin(student),
        "## Licence",
        f"This is a derivative of {base}: that model's licence applies to it.",
    ]
    return "\n\n".join(parts) + "\n"


def _front(student: Student, form: Form) -> str:
    tags = ["facm", "text-to-video" if student.frames > 1 else "text-to-image", *(["lora"] if form == "lora" else [])]
    lines = ["---", f"base_model: {json.dumps(student.origin['base'])}", "library_name: diffusers", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _few_steps(student: Student, form: Form, num_steps: int, kind: Kind, name: str) -> list[str]:
    pipeline = student.model.pipeline
    arguments = (
        student.unguided
        | student.model.family.call_arguments(student.frames)
        | call_arguments(pipeline, num_steps, kind)
    )
    if student.size is not None:
        arguments |= {"height": student.size[0], "width": student.size[1]}
    code = _opening(student, form, name)
    if form == "lora":
        code = _with_scheduler(code, student, num_steps, kind)
    code += [
        "torch.manual_seed(0)  # the noise between steps is drawn from the global generator",
        *_call(student, f", {_spelled(arguments)}"),
    ]
    return [
        f"## {num_steps} step{'s' * (num_steps > 1)}",
        _code(code),
        f"{'Clips' if student.frames > 1 else 'Pictures'} of the sizes that it was trained on are best"
        + (": `height` and `width` say which." if student.size is None else f", mostly {_times(student.size)} pixels")
        + (f", {student.frames} frames." if student.frames > 1 else "." * (student.size is not None)),
        "## Guidance",
        _guidance(student),
        "## Other numbers of steps",
        other_numbers(student) if is_phased(student) else _other_numbers(pipeline, num_steps, kind),
        "## Seeds",
        f"Fresh noise is drawn between steps{' of one phase' if is_phased(student) else ''}. Most pipelines do not "
        "hand their `generator` to the scheduler: `torch.manual_seed` makes a picture repeatable, `generator` alone "
        f"does not. `{class_of('facm' if kind == 'stock' else kind, student.bounds)[1]}` has a `generator` of its own.",
    ]


def _with_scheduler(code: list[str], student: Student, num_steps: int, kind: Kind) -> list[str]:
    """Lines that open a pipeline, and give it the scheduler that an exported folder would have."""
    if kind == "facm" and is_phased(student):
        return [
            "from facm.foundation.export.phased_scheduler import PhasedScheduler",
            *code,
            f"pipe.scheduler = PhasedScheduler(bounds={list(student.bounds)})",
        ]
    if kind == "flow-jump":
        return [
            "from facm.foundation.export.flow_jump_scheduler import FlowJumpScheduler",
            *code,
            "pipe.scheduler = FlowJumpScheduler()",
        ]
    settings = _spelled(stock_settings(student.model.pipeline, num_steps, student.bounds))
    return [
        "from diffusers import FlowMatchEulerDiscreteScheduler",
        *code,
        f"pipe.scheduler = FlowMatchEulerDiscreteScheduler({settings})",
    ]


def _guidance(student: Student) -> str:
    off, told = student.model.family.unguided(), student.network.embedded_guidance
    sentences = ["What the teacher had of guidance is in the weights."]
    if off:
        sentences.append(f"`{_spelled(off)}` keeps the pipeline from guiding a second time, as it would by default.")
    if told is not None:
        sentences.append(f"`guidance_scale={told}` is what the transformer was told when it was trained.")
    return " ".join(sentences)


def _other_numbers(pipeline: str, num_steps: int, kind: Kind) -> str:
    if kind == "flow-jump":
        return (
            "`num_inference_steps` counts evaluations, 1 to 8. The scheduler, "
            "`facm.foundation.export.flow_jump_scheduler.FlowJumpScheduler`, follows the flow that the student holds "
            "first, from three evaluations on, and then jumps. facm must be installed; without it, jump alone by "
            f"diffusers' own: `FlowMatchEulerDiscreteScheduler({_spelled(stock_settings(pipeline, num_steps))})`."
        )
    levels = "A student is sampled at the noise levels 1, (N - 1)/N, ..., 1/N, for any N from 1 to 8."
    if kind == "facm":
        return (
            f"{levels} The scheduler of this folder, `facm.foundation.export.scheduler.FewStepScheduler`, has them for "
            f"every `num_inference_steps`. facm must be installed; without it, use diffusers' own: "
            f"`FlowMatchEulerDiscreteScheduler({_spelled(stock_settings(pipeline, num_steps))})`."
        )
    by = levels_by(pipeline)
    if by == "pipeline":
        return f"{levels} {pipeline} hands them to the scheduler: change `num_inference_steps`, nothing else."
    if by == "caller":
        return (
            f"{levels} {pipeline} takes them as `sigmas=[1 - i / N for i in range(N)]`, with `num_inference_steps=N`. "
            "Without `sigmas` diffusers spaces them from 1 to 0.001, and the last step does nothing."
        )
    one = _code(
        [
            "from diffusers import FlowMatchEulerDiscreteScheduler",
            "",
            "N = 4",
            "pipe.scheduler = FlowMatchEulerDiscreteScheduler(",
            "    shift=1.0, stochastic_sampling=True, shift_terminal=1 / N if N > 1 else None",
            ")",
        ]
    )
    any_number = _code(
        [
            "from facm.foundation.export.scheduler import FewStepScheduler",
            "",
            "pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config)",
        ]
    )
    return (
        f"{levels} {pipeline} has the scheduler make them, and diffusers' own makes those of one N, here {num_steps}"
        f"{' (a call with one step would give no picture but NaN)' * (num_steps > 1)}. For another N:\n\n{one}\n\n"
        f"Where facm is installed, its scheduler has the levels of every N:\n\n{any_number}"
    )


def _as_before(student: Student, form: Form, name: str) -> list[str]:
    code = [*_opening(student, form, name), *_call(student)]
    return ["## Use", "It is called as its model is: it has not been distilled into few steps.", _code(code)]


def _opening(student: Student, form: Form, name: str) -> list[str]:
    code = ["import torch", "from diffusers import DiffusionPipeline"]
    code += ["from diffusers.utils import export_to_video", ""] if student.frames > 1 else [""]
    folder = student.origin["base"] if form == "lora" else name
    if form == "lora":
        code.append("# the folder of the model that the adapters are for, or its name on the hub")
    code.append(f'pipe = DiffusionPipeline.from_pretrained("{folder}", torch_dtype=torch.bfloat16).to("cuda")')
    if form == "lora" and student.model.boundary is not None:
        return [*code[:-1], *opening(student, name)]
    return [*code, f'pipe.load_lora_weights("{name}")'] if form == "lora" else code


def _call(student: Student, arguments: str = "") -> list[str]:
    """Lines that make a picture, or a clip and its file."""
    if student.frames == 1:
        return [f'image = pipe("a red fox in snow"{arguments}).{_output(student)}']
    return [
        f'frames = pipe("a red fox in snow"{arguments}).frames[0]',
        f'export_to_video(frames, "fox.mp4", fps={student.model.family.fps})',
    ]


def _output(student: Student) -> str:
    return "frames[0][0]" if "num_frames" in student.model.family.call_arguments() else "images[0]"


def _origin(student: Student) -> str:
    names = {
        "base": "model",
        "base_transformer": "hash of its transformer's files",
        "run": "run" + " of the low-noise half" * (student.high is not None),
        "run_high_noise": "run of the high-noise half",
        "weights": "weights",
        "images_seen": "images seen",
        "checkpoint_sha256": "sha256 of the checkpoint",
        "checkpoint_sha256_high_noise": "sha256 of the high-noise half's checkpoint",
        "lora_rank": "rank of its adapters",
        "smooth": "highest frequency of its time embedding, in radians per unit of t",
        "facm": "version of facm",
    }
    rows = [f"| {said} | {student.origin[key]} |" for key, said in names.items() if student.origin.get(key) is not None]
    return "\n".join(["| | |", "|---|---|", *rows])


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _spelled(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])

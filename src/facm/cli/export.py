"""facm export RUN --to diffusers | lora | comfyui: a text-to-image student as others use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from facm.core.files import TakenError
from facm.core.terminal import say, warn

if TYPE_CHECKING:
    from facm.foundation.export.lowrank import LowRank
    from facm.foundation.export.student import Student
    from facm.foundation.folder import Part
    from facm.foundation.network import DiffusersNetwork


def export_to(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    to: Literal["diffusers", "lora", "comfyui"],
    out: Path,
    num_steps: int = 2,
    lora_rank: int | None = None,
    ema: float | None = None,
    raw: bool = False,
    high_noise: Path | None = None,
    scheduler: Literal["stock", "facm"] = "stock",
    dtype: Literal["fp32", "bf16"] = "fp32",
    trust_recipe: bool = False,
) -> None:
    """Write a text-to-image student for diffusers or ComfyUI.

    Args:
        run: the folder of a run of facm distill or facm finetune.
        to: diffusers: a whole pipeline; lora: adapters for load_lora_weights; comfyui: adapters by ComfyUI's names.
        out: folder to write, or NAME.safetensors for comfyui. What exists is not overwritten.
        num_steps: steps that the scheduler and the model card are written for, 1 to 8.
        lora_rank: rank of the adapters that a run without adapters is approximated by, for lora and comfyui.
        ema: EMA length sigma_rel; any length if the run kept snapshots; default: the run's first.
        raw: the raw weights instead of an EMA.
        high_noise: where RUN is the low-noise half of a pair (facm distill --student low-noise), the run of the other.
        scheduler: stock: diffusers' own; facm: right for every number of steps, but facm must be installed to open the
            folder.
        dtype: type of the weights that are written.
        trust_recipe: execute the recipe file that came with the run, from now on, whoever wrote it.
    """
    import torch

    from facm.foundation.export.comfyui import write_comfyui
    from facm.foundation.export.diffusers_folder import write_folder
    from facm.foundation.export.lora_file import write_lora
    from facm.foundation.export.schedule import check_steps
    from facm.foundation.folder import TRANSFORMER
    from facm.runs.folder import RunFolder

    _check(to, out, num_steps, lora_rank, high_noise)
    student = _student(run, high_noise, ema, raw, trust_recipe, alone=to == "comfyui")
    if student.few_step and to != "comfyui":
        check_steps(num_steps, scheduler, student.model.pipeline, student.bounds)
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    kept = ""
    try:
        if to == "diffusers":
            write_folder(student, out, num_steps, scheduler, kind)
        else:
            differences, kept = _adapters(student, lora_rank)
            if to == "lora":
                write_lora(student, differences, out, num_steps, kind, kept, scheduler)
            else:
                write_comfyui(student, differences[TRANSFORMER], out, kind)
    except TakenError as error:  # somebody else wrote it meanwhile
        raise ValueError(f"--out {out} exists and is not overwritten; choose another name") from error
    say(f"{student.origin['weights']} at {student.origin['images_seen']} images: {out}")
    if kept:
        say(kept)
    if RunFolder(run).schedule.exists():
        warn(f"without the searched schedule of {run}, which --to {to} has no place for: it stays with the run")


def _check(to: str, out: Path, num_steps: int, lora_rank: int | None, high_noise: Path | None) -> None:
    """Raise ValueError for options that do not go together, before anything is loaded."""
    from facm.foundation.export.schedule import MOST_STEPS

    if not 1 <= num_steps <= MOST_STEPS:
        raise ValueError(f"--num-steps {num_steps}, expected 1 to {MOST_STEPS}")
    if (to == "comfyui") != (out.suffix == ".safetensors"):
        expected = "a name that ends in .safetensors" if to == "comfyui" else "the name of a folder"
        raise ValueError(f"--out {out} with --to {to}, expected {expected}")
    if to == "diffusers" and lora_rank is not None:
        raise ValueError(f"--lora-rank {lora_rank} with --to diffusers, which holds all weights; expected --to lora")
    if out.exists() or out.is_symlink():
        raise ValueError(f"--out {out} exists and is not overwritten; choose another name")
    if to == "comfyui" and high_noise is not None:
        raise ValueError(f"--high-noise {high_noise} with --to comfyui, which has a file for each half; expected none")


def _student(
    run: Path, high_noise: Path | None, ema: float | None, raw: bool, trust_recipe: bool, alone: bool
) -> Student:
    """alone: whether half of a pair may be without the other."""
    from facm.foundation.experts.pair import check_whole, pair_of
    from facm.foundation.export.experts import student_of_pair
    from facm.foundation.export.student import student_of
    from facm.pretrained.trained import load_trained

    trained = load_trained(run, ema, raw, trust_recipe=trust_recipe)
    if high_noise is not None:
        return student_of_pair(pair_of(trained, load_trained(high_noise, ema, raw, trust_recipe=trust_recipe)))
    student = student_of(trained)
    if not alone:
        check_whole(trained)
    return student


def _adapters(student: Student, lora_rank: int | None) -> tuple[dict[Part, dict[str, LowRank]], str]:
    """What a student adds to its model, by the transformer of the pipeline, and a sentence about what that leaves
    out."""
    found = {part: _of_network(student, network, lora_rank) for part, network in student.networks.items()}
    return {part: layers for part, (layers, _) in found.items()}, " ".join(said for _, said in found.values() if said)


def _of_network(student: Student, network: DiffusersNetwork, lora_rank: int | None) -> tuple[dict[str, LowRank], str]:
    from facm.foundation.export.lowrank import added
    from facm.foundation.export.svd import low_rank
    from facm.foundation.folder import load_transformer

    if network.has_lora:
        if lora_rank is not None:
            raise ValueError(
                f"--lora-rank {lora_rank} with a run that trained adapters of rank {student.origin['lora_rank']}: they "
                "are written as they are; expected no --lora-rank"
            )
        differences = added(network)
        if not differences:
            raise ValueError("the adapters of this run are still zero, so that there is nothing to write")
        return differences, ""
    if lora_rank is None:
        raise ValueError(
            "--lora-rank is missing: all weights of this run were trained, expected the rank of adapters to "
            "approximate them by, such as 64"
        )
    differences, kept = low_rank(network, load_transformer(student.model, part=network.part), lora_rank)
    return differences, f"Adapters of rank {lora_rank} hold {kept}."

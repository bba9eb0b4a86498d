"""A trained network given away: one file of weights, or a text-to-image student for diffusers and ComfyUI."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from facm.core.files import TakenError
from facm.core.terminal import warn
from facm.flow.phases import WHOLE
from facm.pretrained.convert import export_reference
from facm.pretrained.trained import Trained
from facm.pretrained.trained import export as write
from facm.runs.folder import RunFolder

if TYPE_CHECKING:
    from facm.foundation.export.lowrank import LowRank
    from facm.foundation.export.student import Student
    from facm.foundation.folder import Part
    from facm.foundation.network import DiffusersNetwork
    from facm.latents.statistics import Statistics
    from facm.sampling.schedule import Schedule

To = Literal["diffusers", "lora", "comfyui"]


def check_weights(out: Path) -> None:
    """Raise ValueError for a file that weights cannot be written into."""
    if out.suffix not in (".safetensors", ".pt"):
        raise ValueError(
            f"out = {out}, expected a name that ends in .safetensors, or in .pt for the authors' layout; text-to-image "
            "students are written to = diffusers, lora or comfyui"
        )
    if out.exists():
        raise ValueError(f"out = {out} exists and is not overwritten; choose another name")


def export_weights(trained: Trained, out: Path) -> None:
    """Write the network into one file, NAME.safetensors, or NAME.pt in the layout of the authors' students.

    Raises ValueError for another name, one that exists, and phases in a .pt.
    """
    check_weights(out)
    bounds = trained.interface.bounds
    if out.suffix == ".pt" and bounds != WHOLE:
        raise ValueError(
            f"out = {out}: {trained.path} jumps to the ends of its phases, {bounds}, which the authors' layout cannot "
            "say, nor their sampler do; expected NAME.safetensors"
        )
    if out.suffix == ".pt":
        export_reference(trained.network, trained.config, out, trained.interface.learns_shortcut)
        schedule = None
    else:
        schedule = _schedule(trained)
        write(trained, out, _statistics(trained), schedule)
    if schedule is None and RunFolder(trained.path).schedule.exists():
        warn(
            f"without the searched schedule of {trained.path}, which "
            + ("the authors' layout cannot hold" if out.suffix == ".pt" else "is of other weights, or damaged")
        )


def _schedule(trained: Trained) -> Schedule | None:
    """The run's searched schedule, where it is of these weights."""
    with contextlib.suppress(ValueError):
        found = trained.schedule()
        return found if found.network == trained.identity else None
    return None


def _statistics(trained: Trained) -> Statistics | None:
    """Of the run's latents. Without its data, the file will be without them, too."""
    try:
        return getattr(trained.data.open(), "statistics", None)
    except ValueError as error:
        warn(f"without latent statistics: {error}")
        return None


def check_text_to_image(
    out: Path, to: To, num_steps: int, lora_rank: int | None, high_noise: Path | None = None
) -> None:
    """Raise ValueError for what does not go together, before anything is loaded."""
    from facm.foundation.export.schedule import MOST_STEPS

    if not 1 <= num_steps <= MOST_STEPS:
        raise ValueError(f"num_steps = {num_steps}, expected 1 to {MOST_STEPS}")
    if to not in ("diffusers", "lora", "comfyui"):
        raise ValueError(f"to = {to!r}, expected 'diffusers', 'lora' or 'comfyui', or 'weights'")
    if (to == "comfyui") != (out.suffix == ".safetensors"):
        expected = "a name that ends in .safetensors" if to == "comfyui" else "the name of a folder"
        raise ValueError(f"out = {out} with to = {to}, expected {expected}")
    if to == "diffusers" and lora_rank is not None:
        raise ValueError(f"lora_rank = {lora_rank} with to = diffusers, which holds all weights; expected to = lora")
    if out.exists() or out.is_symlink():
        raise ValueError(f"out = {out} exists and is not overwritten; choose another name")
    if to == "comfyui" and high_noise is not None:
        raise ValueError(f"high_noise = {high_noise} with to = comfyui, which has a file for each half; expected none")


def export_text_to_image(
    trained: Trained,
    out: Path,
    to: To,
    num_steps: int = 2,
    lora_rank: int | None = None,
    scheduler: Literal["stock", "facm", "flow-jump"] = "stock",
    dtype: Literal["fp32", "bf16"] = "fp32",
) -> list[str]:
    """Write a text-to-image student, or a pair of them, for diffusers or ComfyUI; what was written, in words.

    Raises ValueError for anything else, and for a name that exists.
    """
    import torch

    from facm.foundation.experts.pair import TrainedPair
    from facm.foundation.export.comfyui import write_comfyui
    from facm.foundation.export.diffusers_folder import write_folder
    from facm.foundation.export.lora_file import write_lora
    from facm.foundation.export.schedule import check_steps
    from facm.foundation.folder import TRANSFORMER
    from facm.sampling.methods import FlowThenJump

    half = trained.high if isinstance(trained, TrainedPair) else None
    check_text_to_image(out, to, num_steps, lora_rank, None if half is None else half.path)
    student = _student(trained, alone=to == "comfyui")
    if student.few_step and to != "comfyui":
        check_steps(num_steps, scheduler, student.model.pipeline, student.bounds)
        if scheduler == "flow-jump":
            FlowThenJump(num_steps).check(trained.interface)
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
        raise ValueError(f"out = {out} exists and is not overwritten; choose another name") from error
    if RunFolder(trained.path).schedule.exists():
        warn(
            f"without the searched schedule of {trained.path}, which to = {to} has no place for: it stays with the run"
        )
    said = [f"{student.origin['weights']} at {student.origin['images_seen']} images: {out}"]
    return [*said, kept] if kept else said


def _student(trained: Trained, alone: bool) -> Student:
    """alone: whether half of a pair may be without the other."""
    from facm.foundation.experts.pair import TrainedPair, check_whole
    from facm.foundation.export.experts import student_of_pair
    from facm.foundation.export.student import student_of

    if isinstance(trained, TrainedPair):
        return student_of_pair(trained)
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
                f"lora_rank = {lora_rank} with a run that trained adapters of rank {student.origin['lora_rank']}: they "
                "are written as they are; expected lora_rank = None"
            )
        differences = added(network)
        if not differences:
            raise ValueError("the adapters of this run are still zero, so that there is nothing to write")
        return differences, ""
    if lora_rank is None:
        raise ValueError(
            "lora_rank = None, and all weights of this run were trained: expected the rank of adapters to approximate "
            "them by, such as 64"
        )
    differences, kept = low_rank(network, load_transformer(student.model, part=network.part), lora_rank)
    return differences, f"Adapters of rank {lora_rank} hold {kept}."

"""facm prepare: prompts and pictures into data that a text-to-image model is distilled or fine-tuned on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from facm.api.device import placed
from facm.cli.parsing import Advanced, Group
from facm.core.terminal import counting, say, warn
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from facm.distributed.process_group import World
    from facm.foundation.captions.manifest import Manifest
    from facm.foundation.prepare.pipeline import Options, Summary, Work
    from facm.foundation.prepare.sources import Source

SHOWN = 5


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is made, and how."""

    size: tuple[int, ...] = ()
    """Side, or height and width, in pixels of the pictures; with --buckets the root of their area. Default: the size
    that all pictures have, or for prompts alone the pipeline's."""
    frames: int = 1
    """Frames of each clip, for a model of videos; 1: pictures."""
    fps: float | None = None
    """Frames a second that video files are read at; default: as they are."""
    buckets: bool = False
    """Crop pictures of several sizes to several aspect ratios of about one area."""
    steps: int = 40
    """Steps of the teacher, for prompts alone."""
    guidance_scale: float | None = None
    """Guidance of the teacher, for prompts alone: the number that the model's pipeline is called with."""
    guidance_scale_2: float | None = None
    """The same of the expert of low noise, where the model has two (Wan 2.2: 3); default: --guidance-scale."""
    resident: Advanced[Literal["both", "one"]] = "both"
    """Which experts are on the device, where the model has two: one where memory is short."""
    embedded_guidance: float | None = None
    """Guidance that the transformer is told, where it takes that (FLUX.1-dev: 3.5)."""
    negative_prompt: str = ""
    """What guidance leads away from, and what a dropped caption becomes in training."""
    seed: int = 0
    """Seed of the teacher's noise."""
    batch_size: int = 16
    """Prompts, or pictures, at once."""
    shard_size: Advanced[int] = 500
    """Samples in one file."""
    latents: Advanced[Literal["fp32", "bf16"]] = "fp32"
    """Type of the stored latents."""
    embeddings: Advanced[Literal["encoder", "bf16"]] = "encoder"
    """Type of the stored embeddings: the text encoder's, or bf16."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the text encoders and the transformer; auto: bf16 on a GPU, fp32 elsewhere."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu, cuda, or a GPU's number as in cuda:1."""
    dry_run: bool = False
    """Check everything and print what would be written; write nothing."""
    quiet: bool = False
    """Print nothing but warnings and errors."""


PREPARE = PrepareOptions()


def prepare(
    model: Path,
    out: Path,
    source: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = None,
    prompts: Path | None = None,
    options: Group[PrepareOptions] = PREPARE,
) -> None:
    """Prepare pictures with captions, or prompts alone, for a text-to-image model; after an interruption the same
    command continues. (Given --autoencoder, it is facm latents encode, as it was called before.)

    Args:
        source: folder or tar file of pictures, each with a .txt of its name beside it; or JSON lines with prompt and
            image, a path. With --frames a folder of clips, which are video files or folders of frames, each with a .txt
            of its name beside it; or JSON lines with prompt and video.
        prompts: in place of it, a text file with one prompt a line, or JSON lines without images: the model itself
            makes the pictures or clips.
        model: folder of a model in diffusers' layout.
        out: folder to write.
    """
    from facm.distributed.collectives import by_first
    from facm.distributed.process_group import opened
    from facm.foundation.prepare.sources import source_at

    given = [path for path in (source, prompts) if path is not None]
    if len(given) != 1:
        raise ValueError("expected either a folder of pictures or --prompts FILE, and one of them")
    found = source_at(given[0], clips=prompts is None and options.frames > 1)
    if prompts is not None and found.pictures is not None:
        raise ValueError(f"--prompts {prompts} has pictures; expected it without --prompts")
    with opened(Engine()) as ranks:
        world = placed(ranks, options.device)
        how = _library(options, world)
        if world.first and not options.quiet and found.skipped:
            say(f"{found.skipped} empty lines of {given[0]} are skipped")
        if options.dry_run:
            by_first(world, lambda: _dry_run(found, model, out, how))
        else:
            _prepare(found, model, out, how, options.quiet, world)


def _library(options: PrepareOptions, world: World) -> Options:
    from facm.foundation.prepare.pipeline import Options

    precision: Literal["fp32", "bf16"] = "bf16" if world.device.type == "cuda" else "fp32"
    if options.precision != "auto":
        precision = options.precision
    names = {field.name for field in dataclasses.fields(Options)} - {"precision"}
    return Options(**{name: getattr(options, name) for name in names}, precision=precision)


def _prepare(source: Source, model: Path, out: Path, options: Options, quiet: bool, world: World) -> None:
    from facm.foundation.prepare.pipeline import prepare as run

    report, planned = (None, None) if quiet else (counting, lambda work: say(_planned(work)))
    summary = run(source, model, out, options, world, report, planned)
    if not world.first:
        return
    _warn_of(summary)
    if not quiet:
        say(*_said(summary.manifest), f"{summary.made} of them made in {summary.seconds:.0f} s: {out}")


def _warn_of(summary: Summary) -> None:
    from facm.foundation.prepare.text import cut_line

    if summary.cut:
        many = summary.manifest.cut
        warn(f"{many} prompts are longer than the text encoder takes, and were cut:")
        for cut in summary.cut[:SHOWN]:
            warn(f"  {cut_line(cut)}")
    if summary.enlarged:
        warn(f"{summary.enlarged} pictures are smaller than their size in the data, and were enlarged")


def _said(manifest: Manifest) -> list[str]:
    frames = manifest.buckets[0].frames
    sizes = ", ".join(f"{b.height} x {b.width} ({b.n})" for b in manifest.buckets)
    sizes += f", {frames} frames each" * (frames > 1)
    parts = ", ".join(f"{part.name} {part.shape}" for part in manifest.parts)
    by = "pictures" if manifest.teacher is None else f"made by the teacher in {manifest.teacher.steps} steps"
    return [f"{manifest.n} samples for {manifest.pipeline}, {by}: {sizes}; condition: {parts}"]


def _planned(work: Work) -> str:
    settings = work.settings
    sizes = ", ".join(f"{h} x {w} ({n})" for (h, w), n in zip(settings.sizes, settings.counts, strict=True))
    sizes += f", {settings.frames} frames each" * (settings.frames > 1)
    by = "pictures" if settings.teacher is None else f"to be made by the teacher in {settings.teacher.steps} steps"
    return f"{settings.n} samples for {settings.pipeline}, {by}: {sizes}; latents {', '.join(map(str, work.shapes))}"


def _dry_run(source: Source, model: Path, out: Path, options: Options) -> None:
    """Print what would be prepared. Raises ValueError as preparing would before its first sample."""
    from facm.foundation.captions.shards import PROMPTS, SAMPLES
    from facm.foundation.prepare.pipeline import opened, unfinished
    from facm.foundation.prepare.settings import begun

    work = opened(source, model, out, options)
    settings = work.settings
    begun(out, settings)
    say(_planned(work))
    left = [len(unfinished(out, settings, kind)) for kind in (PROMPTS, SAMPLES)]
    say(f"would write to {out}: {left[0]} files of prompts and {left[1]} of latents are left")
    say("dry run: nothing was written")

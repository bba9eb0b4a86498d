"""Prompts and pictures to a folder of prepared data, on any number of processes, resuming after an interruption.

In stages, so that no more of the model is in memory than is needed: the text encoders for all prompts, then the VAE for
pictures, or the transformer where the teacher makes the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from facm.core.ffmpeg import MOST_FPS
from facm.core.files import write_text
from facm.core.preparation import check_a_folder, record_path
from facm.core.untrusted.door import read_json
from facm.data.checked import check_at_least
from facm.data.pictures import Pictures
from facm.distributed.collectives import by_first, check_same, gathered
from facm.distributed.out_of_memory import OutOfMemory
from facm.distributed.process_group import ALONE, World
from facm.foundation.captions.manifest import MANIFEST, Bucket, Manifest, Part, ShardRecord, TeacherSettings
from facm.foundation.captions.shards import NULL, PROMPTS, SAMPLES
from facm.foundation.experts.switch import Resident
from facm.foundation.experts.teacher import FromExperts
from facm.foundation.folder import SECOND, VAE, ModelFolder, load_pipeline, open_model, quiet
from facm.foundation.network import DTYPES, DiffusersModel
from facm.foundation.prepare.clips import Clips
from facm.foundation.prepare.guidance import check_second
from facm.foundation.prepare.samples import from_clips, from_pictures, from_teacher, write_samples
from facm.foundation.prepare.schedule import default_size, sigmas_of
from facm.foundation.prepare.settings import Settings, begin, finished, held
from facm.foundation.prepare.sizes import Plan, check_frames, in_buckets, one_size, same_size
from facm.foundation.prepare.sources import Source, sizes_of
from facm.foundation.prepare.text import Cut, encode_null, encode_prompts, lengths_path, parts_of, written

Report = Callable[[str], Callable[[int, int], None]]
"""What is counted -> a callback (done, n)."""
MOST_SHOWN = 100
"""Cut prompts that are told of one by one."""


@dataclass(frozen=True)
class Options:
    """How data are prepared."""

    size: tuple[int, ...] = ()
    """Side, or height and width, in pixels of the pictures; with buckets the root of their area. Empty: the size that
    all pictures have, or, for prompts alone, the one that the pipeline makes by default."""
    buckets: bool = False
    """Crop pictures to sizes of about one area, each to that of the nearest aspect ratio."""
    frames: int = 1
    """Frames of each clip; 1 for pictures."""
    fps: float | None = None
    """Frames a second that video files are read at; None: as they are."""
    steps: int = 40
    """Steps of the teacher, where it makes the data."""
    guidance_scale: float | None = None
    """Guidance of the teacher, the pipeline's argument; 1 is none."""
    guidance_scale_2: float | None = None
    """Guidance of the expert of low noise, where the model has two; None: guidance_scale, as in its pipeline."""
    resident: Resident = "both"
    """Which experts are on the device, where the model has two: both, or the one that is asked."""
    embedded_guidance: float | None = None
    """Guidance that the transformer is told, where it takes that (FLUX.1-dev: 3.5)."""
    negative_prompt: str = ""
    """What guidance leads away from, and what stands for dropped captions in training."""
    seed: int = 0
    """Seed of the teacher's noise."""
    latents: Literal["fp32", "bf16"] = "fp32"
    """Type in which latents are stored."""
    embeddings: Literal["encoder", "bf16"] = "encoder"
    """Type in which embeddings are stored: as the text encoder makes them, or bf16."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the text encoders' and the transformer's weights; the VAE's are always fp32."""
    shard_size: int = 500
    """Most samples of one file."""
    batch_size: int = 16
    """Prompts, or pictures, at once."""


@dataclass(frozen=True)
class Summary:
    """The result of :func:`prepare`.

    path: the folder.
    n: number of samples.
    encoded: number of prompts that this call encoded.
    made: number of latents that this call made.
    manifest: what the folder holds now.
    cut: prompts of this call that were longer than the encoder takes, at most MOST_SHOWN.
    enlarged: number of pictures that are smaller than their crop.
    seconds: duration of this call.
    """

    path: str
    n: int
    encoded: int
    made: int
    manifest: Manifest
    cut: tuple[Cut, ...]
    enlarged: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be prepared.

    model: the model.
    source: prompts and pictures.
    plan: sizes and order of the samples.
    settings: what determines the bytes.
    shapes: of one latent of each bucket.
    batch_size: prompts or pictures at once.
    resident: which experts are on the device.
    """

    model: ModelFolder
    source: Source
    plan: Plan
    settings: Settings
    shapes: tuple[tuple[int, ...], ...]
    batch_size: int
    resident: Resident = "both"


def prepare(
    source: Source,
    model: Path,
    out: Path,
    options: Options,
    world: World = ALONE,
    report: Report | None = None,
    planned: Callable[[Work], None] | None = None,
) -> Summary:
    """Encode all prompts, and the pictures of ``source``, or let the teacher make some, into ``out``, for
    :class:`facm.foundation.Captioned`.

    model: folder of a model in diffusers' layout. report: called on the first rank. planned: called there with what
    will be done, before any weights are loaded.
    The data do not depend on the number of ranks, which must see the same folder. After an interruption another call
    resumes with the files that are not complete.
    Raises ValueError for a folder with another preparation, foreign or damaged files, a model that is none, pictures of
    several sizes without buckets, a broken picture, and for embeddings or latents that are not finite.
    """
    began = time.monotonic()
    work = opened(source, model, out, options, world)
    settings = work.settings
    check_same(world, "what is to be prepared", settings)
    if planned is not None and world.first:
        planned(work)
    with held(out) if world.first else nullcontext():
        by_first(world, lambda: begin(out, settings))
        with _released():
            encoded, cut = _prompts(work, out, world, report)
        parts = by_first(world, lambda: parts_of(written(out, settings), read_json(lengths_path(out))))
        with _released():
            made = _samples(work, out, parts, world, report)
        manifest = by_first(world, lambda: _complete(work, out, parts))
    seconds = time.monotonic() - began
    return Summary(str(out), settings.n, encoded, made, manifest, tuple(cut), work.plan.enlarged, seconds)


def opened(source: Source, path: Path, out: Path, options: Options, world: World = ALONE) -> Work:
    """What :func:`prepare` would do; writes nothing. Raises ValueError as it does before its first sample."""
    for name in ("frames", "steps", "shard_size", "batch_size"):
        check_at_least("prepare", name, getattr(options, name), 1)
    check_at_least("prepare", "seed", options.seed, 0)
    check_a_folder(out)
    model = open_model(path)
    pipe = load_pipeline(model, ())  # nothing but its configuration
    _check_frames(source, pipe, model, options)
    plan = by_first(world, lambda: _plan(source, pipe, model, options))
    teacher = _teacher(source, options, model, pipe)
    names = (*model.encoders, VAE, *(model.transformers if teacher else ()))
    settings = Settings(
        n=len(source.prompts),
        source=source.fingerprint,
        pipeline=model.pipeline,
        hashes=by_first(world, lambda: model.identity(*names)),
        negative_prompt=options.negative_prompt,
        sizes=plan.sizes,
        counts=plan.counts,
        shard_size=options.shard_size,
        latents=options.latents,
        embeddings=options.embeddings,
        precision=options.precision,
        teacher=teacher,
        frames=options.frames,
        fps=options.fps,
    )
    shapes = tuple(tuple(model.family.shape(pipe, height, width, options.frames)) for height, width in plan.sizes)
    return Work(model, source, plan, settings, shapes, options.batch_size, options.resident)


def _check_frames(source: Source, pipe: Any, model: ModelFolder, options: Options) -> None:
    """Raise ValueError for a number of frames that the model does not make, or its source does not have."""
    frames, multiple = options.frames, model.family.frame_multiple(pipe)
    check_frames(frames, multiple, model.pipeline)
    if isinstance(source.pictures, Pictures) and frames > 1:
        raise ValueError(f"frames = {frames} with the pictures of {source.name}, expected 1, or clips")
    if isinstance(source.pictures, Clips):
        source.pictures.check(frames)
    fps = options.fps
    if fps is not None and not (isinstance(source.pictures, Clips) and 0 < fps <= MOST_FPS):
        raise ValueError(f"fps = {fps}, expected a number up to {MOST_FPS}, with clips as the source, or None")


def _teacher(source: Source, options: Options, model: ModelFolder, pipe: Any) -> TeacherSettings | None:
    if source.pictures is not None:
        return None
    if options.guidance_scale is None:
        raise ValueError(
            "guidance_scale = None for prompts alone, of which the teacher makes the data; expected the number that "
            "its pipeline is called with, 1 for no guidance"
        )
    if not (math.isfinite(options.guidance_scale) and options.guidance_scale > 0):
        raise ValueError(f"guidance_scale = {options.guidance_scale}, expected a number above 0")
    second = check_second(options.guidance_scale, options.guidance_scale_2, model)
    if options.embedded_guidance is None and pipe.transformer.config.get("guidance_embeds", False):
        raise ValueError(
            "embedded_guidance = None: this transformer is told its guidance, expected a number, such as 3.5"
        )
    return TeacherSettings(
        options.steps,
        options.guidance_scale,
        options.embedded_guidance,
        options.seed,
        options.precision,
        guidance_scale_2=second,
        boundary=model.boundary,
    )


def _plan(source: Source, pipe: Any, model: ModelFolder, options: Options) -> Plan:
    multiple, n, size = model.family.multiple(pipe), len(source.prompts), options.size
    if len(size) > 2 or (options.buckets and len(size) > 1):
        expected = "one number, the root of the buckets' area" if options.buckets else "a side, or height and width"
        raise ValueError(f"size = {size}, expected {expected}")
    if options.buckets and source.pictures is None:
        raise ValueError("buckets = True for prompts alone, whose pictures the teacher makes at one size")
    pictures = source.pictures
    if size and not options.buckets:
        return one_size(n, size[0], size[-1], multiple)
    default = default_size(pipe)
    if pictures is None:
        return one_size(n, *default, multiple)
    sizes = sizes_of(pictures)
    if not options.buckets:
        return same_size(sizes, multiple)
    return in_buckets(sizes, size[0] if size else round(math.sqrt(default[0] * default[1])), multiple)


def unfinished(out: Path, settings: Settings, kind: str) -> list[int]:
    """The shards of PROMPTS or SAMPLES that are not whole in ``out``."""
    spans = enumerate(settings.spans)
    return [k for k, span in spans if finished(out / settings.file(kind, k), len(span)) is None]


def _prompts(work: Work, out: Path, world: World, report: Report | None) -> tuple[int, list[Cut]]:
    """Encode what is not encoded yet: the number of prompts, and those that were cut."""
    settings = work.settings

    def left() -> tuple[list[int], bool]:
        whole = finished(out / NULL, 1) is not None and lengths_path(out).exists()
        return unfinished(out, settings, PROMPTS), whole and (settings.teacher is None or _schedule(out).exists())

    todo, rest = by_first(world, left)
    if not todo and rest:
        return 0, []
    family, names = work.model.family, work.model.encoders
    pipe = load_pipeline(work.model, names, DTYPES[settings.precision])
    for name in names:
        if isinstance(part := getattr(pipe, name), nn.Module):
            part.to(world.device).eval()
    mine = todo[world.rank :: world.ranks]
    with quiet(warnings_too=True):
        if not rest:
            by_first(world, lambda: _once(work, pipe, out))
        lengths = by_first(world, lambda: read_json(lengths_path(out)))
        texts, order = work.source.prompts, work.plan.order
        making = encode_prompts(family, pipe, texts, out, settings, mine, order, work.batch_size, lengths)
        return _in_step(world, making, work, todo, mine, report and report("prompts"))


def _once(work: Work, pipe: Any, out: Path) -> None:
    """Write the null, and the teacher's noise levels."""
    encode_null(work.model.family, pipe, out, work.settings)
    if work.settings.teacher is not None:
        sigmas = sigmas_of(pipe, work.settings.teacher.steps, *work.settings.sizes[0], work.settings.frames)
        write_text(_schedule(out), json.dumps(sigmas) + "\n")


def _schedule(out: Path) -> Path:
    """The record of the teacher's noise levels."""
    return record_path(out / "schedule.safetensors")


def _samples(work: Work, out: Path, parts: Sequence[Part], world: World, report: Report | None) -> int:
    """Make the latents that are not there yet, and return their number."""
    settings, family, device = work.settings, work.model.family, world.device
    todo = by_first(world, lambda: unfinished(out, settings, SAMPLES))
    if not todo:
        return 0
    mine = todo[world.rank :: world.ranks]
    pictures, teacher = work.source.pictures, settings.teacher
    if pictures is not None:
        vae = load_pipeline(work.model, (VAE,)).vae.to(device).eval()
        if isinstance(pictures, Clips):
            makes = from_clips(family, vae, pictures, settings, work.plan.order, device)
        else:
            makes = from_pictures(family, vae, pictures, settings, work.plan.order, device)
    else:
        assert teacher is not None
        teacher = dataclasses.replace(teacher, sigmas=tuple(by_first(world, lambda: read_json(_schedule(out)))))
        network = _network(work, teacher).to(device)
        makes = from_teacher(family, network, out, settings, teacher, parts, work.shapes[0], work.plan.order, device)
    names = pictures.files if pictures is not None else work.source.prompts

    def name_at(place: int) -> str:
        return f"{names[work.plan.order[place]]!r:.80}"

    making = write_samples(out, settings, mine, work.batch_size, makes, name_at)
    done, _ = _in_step(
        world,
        ((n, []) for n in making),
        work,
        todo,
        mine,
        report and report("clips" if settings.frames > 1 else "pictures"),
    )
    return done


def _network(work: Work, teacher: TeacherSettings) -> nn.Module:
    """The model as the teacher that makes the data."""
    high = DiffusersModel(
        str(work.model.path), embedded_guidance=teacher.embedded_guidance, dtype=work.settings.precision
    )
    if work.model.boundary is None:
        return high.build()
    return FromExperts(high, dataclasses.replace(high, part=SECOND), work.resident).load()


def _in_step(
    world: World,
    making: Generator[tuple[int, list[Cut]], None, None],
    work: Work,
    todo: Sequence[int],
    mine: Sequence[int],
    report: Callable[[int, int], None] | None,
) -> tuple[int, list[Cut]]:
    """Run ``making`` on all ranks in step, so that a lost rank ends all: what they made together.

    todo: the shards of all ranks. mine: those of this one.
    """
    settings, cut, done = work.settings, list[Cut](), 0
    before = settings.n - sum(len(settings.spans[k]) for k in todo)
    rounds = max(gathered(world, sum(-(-len(settings.spans[k]) // work.batch_size) for k in mine)))
    with closing(making), _explained():
        for _ in range(rounds):
            for n, lost in gathered(world, next(making, (0, []))):
                done += n
                cut += lost[: MOST_SHOWN - len(cut)]
            if report is not None and world.first:
                report(before + done, settings.n)
    return done, cut


@contextlib.contextmanager
def _released() -> Iterator[None]:
    """Give back the memory of what was loaded by the functions that were called inside."""
    try:
        yield
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"out of memory: {str(error).splitlines()[0]}. What helps: a smaller batch_size, a smaller size, or "
            "precision = bf16"
        ) from error


def _complete(work: Work, out: Path, parts: tuple[Part, ...]) -> Manifest:
    """Write the manifest of all files. Raises ValueError where one is not complete."""
    settings = work.settings
    prompts, samples = _records(out, settings, PROMPTS), _records(out, settings, SAMPLES)
    null = finished(out / NULL, 1)
    assert null is not None
    teacher = settings.teacher
    if teacher is not None:
        teacher = dataclasses.replace(teacher, sigmas=tuple(read_json(_schedule(out))))
    buckets = zip(settings.sizes, settings.counts, work.shapes, strict=True)
    manifest = Manifest(
        n=settings.n,
        shard_size=settings.shard_size,
        dtype="BF16" if settings.latents == "bf16" else "F32",
        buckets=tuple(Bucket(height, width, n, shape, settings.frames) for (height, width), n, shape in buckets),
        parts=parts,
        pipeline=settings.pipeline,
        family=type(work.model.family).__name__,
        model=str(work.model.path.expanduser().absolute()),
        hashes=settings.hashes,
        negative_prompt=settings.negative_prompt,
        null_sha256=null.sha256,
        cut=sum(record.cut for record in prompts),
        teacher=teacher,
        source=work.source.name,
        source_fingerprint=settings.source,
        prompts=prompts,
        samples=samples,
    )
    write_text(out / MANIFEST, manifest.text())
    return manifest


def _records(out: Path, settings: Settings, kind: str) -> tuple[ShardRecord, ...]:
    records = []
    for k, span in enumerate(settings.spans):
        path = out / settings.file(kind, k)
        record = finished(path, len(span))
        if record is None:
            raise ValueError(f"{path} is not whole, though its rank has written it: is {out} shared?")
        records.append(record)
    return tuple(records)

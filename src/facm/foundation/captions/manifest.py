"""``manifest.json``: the contents and the origin of a folder of prepared data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facm.core.component import ComponentError, component, make
from facm.core.preparation import RECORDS, SETTINGS, digest_of
from facm.core.untrusted.door import read_json
from facm.foundation.captions.shards import NULL
from facm.foundation.folder import VAE, ModelFolder

MANIFEST = "manifest.json"
FORMAT = "facm-captions-1"
MOST_BYTES = 2**28
"""Bytes of ``manifest.json``: 256 MiB."""


@dataclass(frozen=True)
@component
class ShardRecord:
    """One finished file."""

    file: str
    """Its name."""
    n: int
    """Number of samples."""
    bytes: int
    """Its size."""
    sha256: str
    """Its hash."""
    cut: int = 0
    """Number of prompts in it that were longer than the encoder takes."""


@dataclass(frozen=True)
@component
class Bucket:
    """The samples of one size, which follow each other."""

    height: int
    """Of the pictures, in pixels."""
    width: int
    """Of the pictures, in pixels."""
    n: int
    """Number of samples."""
    shape: tuple[int, ...]
    """Shape of one latent."""
    frames: int = 1
    """Of each clip; 1 for pictures."""


@dataclass(frozen=True)
@component
class Part:
    """One named tensor of the condition."""

    name: str
    """Its name."""
    dtype: str
    """Its type in safetensors' notation."""
    shape: tuple[int, ...]
    """Shape for one sample; a part of tokens is padded to it with zeros."""
    tokens: bool
    """Whether it is a sequence of tokens, which is stored without its padding."""


@dataclass(frozen=True)
@component
class TeacherSettings:
    """How the teacher made x_1 from prompts alone."""

    steps: int
    """Steps of Euler's method."""
    guidance_scale: float
    """The pipeline's argument; see ``facm.foundation.families.base.Family.scale``."""
    embedded_guidance: float | None
    """What the transformer was told, where it takes that."""
    seed: int
    """Of the noise: that of sample i is a function of (seed, i)."""
    precision: str
    """fp32 or bf16, of the transformer."""
    sigmas: tuple[float, ...] = ()
    """Noise levels from the first to the last, as the pipeline's scheduler has them for its size and shift."""
    guidance_scale_2: float | None = None
    """guidance_scale of the expert of low noise; None: there is one transformer."""
    boundary: float | None = None
    """Lowest noise level of the expert of high noise; None: there is one transformer."""

    def guidance_at(self, sigma: float) -> float:
        """The pipeline's argument at this noise level."""
        if self.boundary is None or self.guidance_scale_2 is None or 1000 * sigma >= 1000 * self.boundary:
            return self.guidance_scale
        return self.guidance_scale_2


@dataclass(frozen=True)
@component
class Manifest:
    """The contents of ``manifest.json``."""

    n: int
    """Number of samples."""
    shard_size: int
    """Most samples of one shard."""
    dtype: str
    """Type of the latents in safetensors' notation."""
    buckets: tuple[Bucket, ...]
    """Sizes, in the order of the samples."""
    parts: tuple[Part, ...]
    """The condition, sorted by name."""
    pipeline: str
    """Class name of the model's pipeline."""
    family: str
    """Class name of its family."""
    model: str
    """Where the model's folder was."""
    hashes: dict[str, str]
    """Component of the model -> hash of its files: text encoders, tokenizers, VAE, and the transformer where it made
    the data."""
    negative_prompt: str
    """What ``null.safetensors`` is the embedding of."""
    null_sha256: str
    """Hash of ``null.safetensors``."""
    cut: int
    """Number of prompts that were longer than the encoder takes."""
    teacher: TeacherSettings | None
    """Where the teacher made the data; None for pictures."""
    source: str
    """Name of the source."""
    source_fingerprint: str
    """Hash of prompts and names of pictures."""
    prompts: tuple[ShardRecord, ...]
    """Files of prompts, in order."""
    samples: tuple[ShardRecord, ...]
    """Files of latents, in order, of the same samples."""
    format: str = field(default=FORMAT)
    """Version of this format."""

    def text(self) -> str:
        """The manifest as JSON, with a digest of all of it."""
        content = dataclasses.asdict(self)
        return json.dumps({**content, "digest": digest_of(content)}, indent=1) + "\n"


def is_prepared(folder: Path) -> bool:
    """Whether ``folder`` has the manifest of prepared data, or was about to have it."""
    return (folder / MANIFEST).is_file() or (folder / NULL).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest in ``folder``.

    Raises ValueError where there is none, and for a damaged or foreign one, or a preparation that was interrupted
    before it wrote one.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / RECORDS / SETTINGS).exists():
            raise ValueError(f"{folder}: preparation not finished: run facm prepare again")
        raise ValueError(f"{folder} has no {MANIFEST}, expected a folder that facm prepare wrote")
    try:
        content = read_json(path, MOST_BYTES)
        digest = content.pop("digest", None)
        found = content.get("format")
        if found != FORMAT:
            raise ValueError(f"format = {found!r:.40}, expected {FORMAT!r}")
        if digest != digest_of(content):
            raise ValueError("changed since it was written")
        manifest: Manifest = make(Manifest, {**content, **_parts(content)})
        _check(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the manifest of prepared data ({type(error).__name__}: {error})") from error
    return manifest


def _parts(content: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, type] = {"buckets": Bucket, "parts": Part, "prompts": ShardRecord, "samples": ShardRecord}
    made: dict[str, Any] = {name: tuple(make(kind, item) for item in content[name]) for name, kind in kinds.items()}
    teacher = content["teacher"]
    return {**made, "teacher": None if teacher is None else make(TeacherSettings, teacher)}


def _check(manifest: Manifest) -> None:
    counts = {
        "buckets": sum(bucket.n for bucket in manifest.buckets),
        "prompts": sum(record.n for record in manifest.prompts),
        "samples": sum(record.n for record in manifest.samples),
    }
    for name, n in counts.items():
        if n != manifest.n or n < 1:
            raise ComponentError(f"{name} of {n} samples, expected n = {manifest.n}, of at least one")
    if [record.n for record in manifest.prompts] != [record.n for record in manifest.samples]:
        raise ComponentError("prompts and samples are not in files of the same numbers")
    files = [record.file for record in (*manifest.prompts, *manifest.samples)]
    if VAE not in manifest.hashes or {type(text) for text in manifest.hashes.values()} != {str}:
        raise ComponentError(f"hashes = {manifest.hashes!r:.80}, expected one of the {VAE} among them")
    if len(set(files)) < len(files) or any("/" in file or file.startswith(".") for file in files):
        raise ComponentError(f"names of files {files[:3]!r:.80}, expected different ones in this folder")


def check_made_by(manifest: Manifest, model: ModelFolder, folder: Path) -> None:
    """Raise ValueError naming the components of ``model`` that are not those that made the data in ``folder``."""
    if manifest.pipeline != model.pipeline:
        raise ValueError(f"{folder} was prepared for a {manifest.pipeline}, and {model.path} is a {model.pipeline}")
    now = model.identity(*(name for name in manifest.hashes if name in model.parts))
    other = [name for name, found in manifest.hashes.items() if now.get(name) != found]
    if other:
        listed = ", ".join(f"{name} {manifest.hashes[name]} (there {now.get(name, 'none')})" for name in other)
        raise ValueError(f"{folder} was prepared by another model than {model.path}: {listed}; prepare it again")

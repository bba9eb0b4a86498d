"""Latents with the embeddings of their prompts, as ``facm prepare`` writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facm.core.component import component
from facm.core.types import Batch, Data
from facm.foundation.captions.manifest import Manifest, Part, ShardRecord, read_manifest
from facm.foundation.captions.shards import PROMPTS, SAMPLES, TYPES, Shard, as_tensor, read_shard
from facm.foundation.decoder import VAEDecoder, vae_decoder
from facm.foundation.folder import VAE, open_model


@dataclass(frozen=True)
@component
class Captioned(Data):
    """Latents and the embeddings of their prompts, in a folder that ``facm prepare`` wrote.

    A batch's condition are the encoder's named tensors, each of one length in the whole data set, so that no number
    depends on which samples are in a batch. Every sample is compared with its checksum when it is read.
    ``open`` raises ValueError naming a file that is missing, of another size, or not what ``manifest.json`` says.
    """

    path: str
    """Folder that contains the data."""
    model: str | None = None
    """Folder of the model, whose VAE makes pictures of latents; None: where it was when the data were prepared."""

    def open(self) -> CaptionedShards:
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"Captioned: path = {self.path!r}, expected an existing folder")
        manifest = read_manifest(folder)
        prompts = opened(folder, manifest, PROMPTS)
        samples = opened(folder, manifest, SAMPLES)
        return CaptionedShards(manifest, prompts, samples, f"Captioned({self.path})", self.model)


def opened(folder: Path, manifest: Manifest, kind: str) -> tuple[Shard, ...]:
    """The shards of PROMPTS or SAMPLES, held against the manifest. Raises ValueError naming one that differs."""
    shapes = manifest_shapes(manifest)
    found = []
    for k, record in enumerate(manifest.prompts if kind == PROMPTS else manifest.samples):
        path = folder / record.file
        if not path.is_file():
            raise ValueError(f"{path} is missing, expected {record.n} samples in it by {folder.name}/manifest.json")
        if path.stat().st_size != record.bytes:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {record.bytes} by manifest.json")
        shard = read_shard(path, kind)
        faults = part_faults(shard, manifest) if kind == PROMPTS else _latent_faults(shard, manifest, shapes[k])
        if shard.n != record.n:
            faults.append(f"{shard.n} samples, expected {record.n} by manifest.json")
        if faults:
            raise ValueError(f"{path}: {faults[0]}")
        found.append(shard)
    return tuple(found)


def manifest_shapes(manifest: Manifest) -> list[tuple[int, ...]]:
    """The shape of the latents in each shard. Raises ValueError where a shard is not of one bucket."""
    records, shapes = list[ShardRecord](reversed(manifest.samples)), []
    for bucket in manifest.buckets:
        left = bucket.n
        while left > 0 and records:
            left -= records.pop().n
            shapes.append(bucket.shape)
        if left:
            raise ValueError(f"manifest.json: a shard holds samples of more than the bucket {bucket.shape}")
    return shapes


def part_faults(shard: Shard, manifest: Manifest) -> list[str]:
    """How the condition's parts in a shard of prompts differ from the manifest."""
    names = tuple(part.name for part in manifest.parts)
    if shard.parts != names:
        return [f"parts {', '.join(shard.parts) or 'none'}, expected {', '.join(names)} by manifest.json"]
    longest, faults = shard.longest(), []
    for part in manifest.parts:
        dtype, shape = shard.types[f"part.{part.name}"], shard.shapes[f"part.{part.name}"]
        fits = dtype == part.dtype and part.tokens == (part.name in shard.ends)
        if part.tokens:
            fits = fits and shape[1:] == part.shape[1:] and longest.get(part.name, 0) <= part.shape[0]
        else:
            fits = fits and shape[1:] == part.shape
        if not fits:
            faults.append(f"{part.name} is {dtype} {shape}, expected {part.dtype} {part.shape} each by manifest.json")
    return faults


def _latent_faults(shard: Shard, manifest: Manifest, shape: tuple[int, ...]) -> list[str]:
    is_, expected = (shard.types["latents"], shard.shapes["latents"][1:]), (manifest.dtype, shape)
    return [] if is_ == expected else [f"latents are {is_[0]} {is_[1]}, expected {manifest.dtype} {shape}"]


def padded(values: Sequence[np.ndarray], part: Part) -> Tensor:
    """One part of several samples (n, *part.shape), with zeros up to the data set's length."""
    raw = np.zeros((len(values), *part.shape), TYPES[part.dtype][0])
    for row, value in zip(raw, values, strict=True):
        if part.tokens:
            row[: len(value)] = value
        else:
            row[...] = value
    return as_tensor(raw, part.dtype)


@dataclass(frozen=True, eq=False)
class CaptionedShards:
    """Opened :class:`Captioned`.

    manifest: what the folder holds.
    prompt_shards: files of prompts, in the order of the samples.
    sample_shards: files of latents, of the same samples.
    name: the data set's name in error messages.
    num_classes: None: there are no classes.
    model: folder of the model whose VAE decodes; None: the one that the manifest names.
    flip: False: the latent of a mirrored picture is not the mirrored latent, and captions know left from right.
    """

    manifest: Manifest
    prompt_shards: tuple[Shard, ...]
    sample_shards: tuple[Shard, ...]
    name: str
    model: str | None = None
    num_classes: int | None = None
    flip: bool = False

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(shard.n for shard in self.sample_shards)])

    @cached_property
    def _bucket_starts(self) -> np.ndarray:
        return np.cumsum([0, *(bucket.n for bucket in self.manifest.buckets)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a latent; of the first bucket where there are several."""
        return self.manifest.buckets[0].shape

    @cached_property
    def buckets(self) -> tuple[np.ndarray, ...]:
        """The indices of the samples of each bucket."""
        return tuple(
            np.arange(first, end, dtype=np.int64)
            for first, end in zip(self._bucket_starts[:-1], self._bucket_starts[1:], strict=True)
        )

    def bucket_shape(self, index: int) -> tuple[int, ...]:
        """Shape of sample ``index``."""
        return self.manifest.buckets[int(np.searchsorted(self._bucket_starts, index, side="right")) - 1].shape

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify samples and conditions wherever the folder lies."""
        m = self.manifest
        parts = [record.sha256 for record in (*m.prompts, *m.samples)] + [m.null_sha256, repr(m.parts)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> Batch:
        """Samples ``indices`` (B,), all of one bucket: x_1 (B, *shape) float32, and the condition by name.

        Raises IndexError for indices outside [0, N), ValueError for a sample that is not the one that was written, and
        for samples of several shapes.
        """
        where = self._where(indices)
        shapes = sorted({self.bucket_shape(int(index)) for index in indices})
        if len(shapes) > 1:
            raise ValueError(f"{self.name}: samples of the shapes {shapes[0]} and {shapes[1]}, expected one bucket's")
        latents = np.stack([self.sample_shards[k].latent(row) for k, row in where])
        prompts = [self.prompt_shards[k].prompt(row)[1] for k, row in where]
        cond = {part.name: padded([row[part.name] for row in prompts], part) for part in self.manifest.parts}
        return Batch(as_tensor(latents, self.manifest.dtype).float(), cond)

    def prompts(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """The prompts of samples ``indices``. Raises as :meth:`read` does."""
        where = self._where(np.asarray(indices, dtype=np.int64))
        return [self.prompt_shards[k].prompt(row)[0].tobytes().decode(errors="replace") for k, row in where]

    def place(self, index: int) -> str:
        """The file and row of sample ``index``, for error messages."""
        [(k, row)] = self._where(np.array([index]))
        return f"{self.sample_shards[k].path.name}, row {row}"

    def decoder(self, device: torch.device) -> VAEDecoder:
        """What makes pictures of latents. Raises ValueError where the model is gone, or its VAE another one."""
        model = open_model(Path(self.model or self.manifest.model).expanduser())
        return vae_decoder(model, device, self.manifest.hashes[VAE])

    def _where(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """Shard and row of each sample."""
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(
                f"{self.name}: indices run over [{indices.min()}, {indices.max()}], of {len(self)} samples"
            )
        which = np.searchsorted(self._starts, indices, side="right") - 1
        rows = indices - self._starts[which]
        return list(zip(which.tolist(), rows.tolist(), strict=True))

"""Latents on disk, in the format of the reference that ``facm latents encode`` writes too."""

from __future__ import annotations

import hashlib
import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from facm.core.component import Positive, Range, component, refused
from facm.core.types import Batch, Data
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.latents.manifest import (
    STATISTICS,
    Manifest,
    check_autoencoder,
    faults_in_files,
    faults_in_shards,
    read_manifest,
)
from facm.latents.shards import PATTERN, RAW, Shard, as_float32, mapped, read_shard, shard_files
from facm.latents.statistics import Statistics, load_statistics, scaled


@dataclass(frozen=True)
@component
class Latents(Data):
    """Latents in ``latents_*.safetensors`` (float32, float16 or bfloat16), sorted by name, with ``latents_stats.pt``.

    Each latent is read from its file when it is needed, compared with its checksum where the file holds one, and
    standardised: float32 (C, H, W). A warning names latents without checksums.
    ``open`` raises ValueError naming a file that is missing, damaged, or does not fit the others or ``latents.json``.
    """

    path: str
    """Folder that contains the latents."""
    autoencoder: AutoencoderConfig | None = None
    """Autoencoder that decodes the latents; it must be the one in latents.json where the folder has that file."""
    scale: Positive | None = None
    """Factor on the latents in place of the folder's statistics, above 0 (Stable Diffusion: 0.18215)."""
    multiplier: Positive = 1.0
    """Factor on the standardised latents, above 0."""
    num_classes: Annotated[int, Range("[1, 16777216]")] = 1000
    """Number of classes of the labels, at least 1."""
    flip: bool = True
    """Use the latent of the mirrored image with probability 1/2."""

    def __post_init__(self) -> None:
        if self.scale is not None and self.multiplier != 1:
            raise refused(self, "multiplier", f"1 with scale = {self.scale}: one of them")

    def open(self) -> LatentShards:
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"Latents: path = {self.path!r}, expected an existing folder")
        files = shard_files(folder)
        manifest = read_manifest(folder)
        faults = [] if manifest is None else faults_in_files(manifest, folder, files)
        if faults:
            raise ValueError("; ".join(faults))
        if not files:
            raise ValueError(f"Latents: path = {self.path!r} holds no latents, expected {PATTERN}")
        shards = tuple(read_shard(path) for path in files)
        self._check(shards)
        faults = [] if manifest is None else faults_in_shards(manifest, shards)
        if faults:
            raise ValueError("; ".join(faults))
        unverified = sum(shard.checksums is None for shard in shards)
        if unverified:
            warnings.warn(
                f"{self.path}: {unverified} of {len(shards)} shards hold no checksums, so that damaged latents would "
                f"not be noticed: facm latents verify {self.path}",
                stacklevel=2,
            )
        statistics = self._statistics(folder, shards[0].shape[0], manifest)
        if manifest is not None and self.autoencoder is not None:
            check_autoencoder(manifest, self.autoencoder, folder)
        if manifest is not None and manifest.num_classes != self.num_classes and manifest.classes:
            raise ValueError(
                f"Latents: num_classes = {self.num_classes}, expected {manifest.num_classes}, the classes of {folder}"
            )
        return LatentShards(
            shards,
            statistics,
            self.num_classes,
            self.flip,
            self.autoencoder,
            name=f"Latents({self.path})",
            encoded_by=None if manifest is None else manifest.autoencoder,
            encoder_identity=None if manifest is None else manifest.identity,
            fingerprint=_fingerprint(shards, statistics, manifest),
        )

    def _check(self, shards: tuple[Shard, ...]) -> None:
        first = shards[0]
        for shard in shards:
            if (shard.shape, shard.dtype) != (first.shape, first.dtype):
                raise ValueError(
                    f"{shard.path}: latents are {shard.dtype} {shard.shape}, expected {first.dtype} {first.shape} as "
                    f"in {first.path.name}"
                )
            if self.flip and shard.latents_flip is None:
                raise ValueError(f"{shard.path} holds no latents_flip: set flip = False")
            outside = np.flatnonzero((shard.labels < 0) | (shard.labels >= self.num_classes))
            if len(outside):
                raise ValueError(
                    f"{shard.path}: row {outside[0]} has label {shard.labels[outside[0]]}, expected one within "
                    f"[0, {self.num_classes})"
                )

    def _statistics(self, folder: Path, channels: int, manifest: Manifest | None) -> Statistics:
        if self.scale is not None:
            return scaled(channels, self.scale)
        path = folder / STATISTICS
        plain = load_statistics(path)
        if plain.channels != channels:
            raise ValueError(f"{path} is of {plain.channels} channels, the latents beside it have {channels}")
        if manifest is not None and plain.fingerprint != manifest.statistics:
            raise ValueError(
                f"{path}: statistics of another data set ({plain.fingerprint}, expected {manifest.statistics})"
            )
        return Statistics(plain.mean, plain.std, self.multiplier)


@dataclass(frozen=True, eq=False)
class LatentShards:
    """Opened :class:`Latents`.

    shards: The files, in the order of the samples.
    statistics: Standardise latents for the network, and restore them for the autoencoder.
    num_classes: Number of classes of the labels.
    flip: Whether latents of mirrored images are used.
    autoencoder: The autoencoder that decodes the latents, if the configuration names one.
    name: The data set's name in error messages.
    encoded_by: The configuration of the autoencoder in ``latents.json``, as JSON; None without that file.
    encoder_identity: The identity of that autoencoder's weights; None without the file.
    fingerprint: 16 hex digits that identify the standardised samples independently of the folder's place: a hash of the
        statistics and the shards' sha256 in ``latents.json``, or else of their names, sizes and numbers of samples.
    """

    shards: tuple[Shard, ...]
    statistics: Statistics
    num_classes: int
    flip: bool
    autoencoder: AutoencoderConfig | None
    name: str
    encoded_by: Any = None
    encoder_identity: str | None = None
    fingerprint: str = ""

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(shard.n for shard in self.shards)])

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.concatenate([shard.labels for shard in self.shards])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shards[0].shape

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> Batch:
        """Samples ``indices`` (B,), not mirrored: x_1 (B, C, H, W) standardised, float32; cond (B,) int64.

        Raises IndexError for indices outside [0, N), ValueError for a latent that is not the one that was written.
        """
        return self.read_mirrored(indices, np.zeros(len(indices), bool))

    def read_mirrored(self, indices: np.ndarray, mirrored: np.ndarray) -> Batch:
        """``read`` with the latent of the mirrored image where ``mirrored`` (B,) bool is true.

        Raises ValueError where there are no such latents.
        """
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(
                f"{self.name}: indices run over [{indices.min()}, {indices.max()}], of {len(self)} samples"
            )
        which = np.searchsorted(self._starts, indices, side="right") - 1
        rows = indices - self._starts[which]
        dtype = self.shards[0].dtype
        raw = np.empty((len(indices), *self.shape), RAW[dtype])
        for place, (k, row, flipped) in enumerate(zip(which.tolist(), rows.tolist(), mirrored.tolist(), strict=True)):
            latents = mapped(self.shards[k])[flipped]
            if latents is None:
                raise ValueError(f"{self.shards[k].path} holds no latents_flip, asked for mirrored ones")
            raw[place] = latents[row]
            checksums = self.shards[k].checksums
            if checksums is not None and zlib.crc32(raw[place]) != checksums[row, 1 + flipped]:
                raise ValueError(f"{self.shards[k].path}: damaged: row {row} is not the one that was written")
        x = self.statistics.standardise(as_float32(raw, dtype))
        return Batch(x, torch.from_numpy(self._labels[indices]))

    def place(self, index: int) -> str:
        """The file and row of sample ``index``, for error messages."""
        k = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self.shards[k].path.name}, row {index - int(self._starts[k])}"


def _fingerprint(shards: tuple[Shard, ...], statistics: Statistics, manifest: Manifest | None) -> str:
    if manifest is None:
        parts = [f"{shard.path.name} {shard.path.stat().st_size} {shard.n}" for shard in shards]
    else:
        recorded = {record.file: record.sha256 for record in manifest.shards}
        parts = [recorded[shard.path.name] for shard in shards]
    return hashlib.sha256("\n".join([*parts, statistics.fingerprint]).encode(errors="surrogateescape")).hexdigest()[:16]

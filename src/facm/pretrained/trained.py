"""A network out of a run folder: for sampling, as a teacher, or to start another run from."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal

import torch

from facm.core.component import Range, component
from facm.core.hashing import digest
from facm.core.modules import without_memory
from facm.core.objective import NetworkInterface, as_objective
from facm.core.state_dict import CheckpointError, check_fits, load_strictly
from facm.core.types import Data, Dataset, NetworkConfig
from facm.distributed.process_group import ALONE, World
from facm.flow.conditions import Labels
from facm.flow.phases import WHOLE
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.latents.decode import ImageDecoder, decoder_of
from facm.latents.statistics import Statistics
from facm.pretrained.latent_space import STABLE_DIFFUSION, VAVAE
from facm.pretrained.native_format import metadata_of, said_of, spelled, write_own
from facm.pretrained.reader import sample_of
from facm.runs.checkpointer import Stored, clock_of, load_snapshot, of_newest, open_of_run
from facm.runs.config import Pretrained, Run
from facm.runs.ema import LENGTHS, Snapshot, synthesise
from facm.runs.folder import RunFolder, open_run
from facm.sampling import schedule as schedules
from facm.sampling.images import is_image
from facm.sampling.schedule import Schedule
from facm.sampling.source import Source


@dataclass(frozen=True)
class Trained:
    """A network in eval mode, how it is called, and which weights these are.

    network: the nn.Module, without gradients.
    config: what built it.
    interface: how it is called, and what it has learned.
    data: what it was trained on, which gives the shape of a sample.
    path: the run's folder, or the published file.
    which: "EMA 0.05", "raw", or the part of a file.
    sigma_rel: length of the EMA; None for raw weights, and where a file does not say it.
    images_seen: the clock; None where a file does not say it.
    checkpoint_sha256: of the file with the weights.
    precision: of the network's forward pass: "fp32", or "bf16" under autocast.
    trained_on: fingerprint of the data that it was trained on, where they had one and it is recorded.
    """

    network: torch.nn.Module
    config: NetworkConfig
    interface: NetworkInterface
    data: Data
    path: Path
    which: str
    sigma_rel: float | None
    images_seen: int | None
    checkpoint_sha256: str
    precision: Literal["fp32", "bf16"] = "fp32"
    trained_on: str | None = None

    @cached_property
    def dataset(self) -> Dataset:
        """The opened data set; for a published file, its space without samples."""
        return self.data.open()

    def source(self, device: torch.device) -> Source:
        """What samples are drawn from; the network is moved to ``device``. Raises ValueError for an objective of your
        own that does not say what the network is conditioned on."""
        return Source(self.network.to(device), self.interface, tuple(self.dataset.shape), device)

    def decoder(self, device: torch.device, autoencoder: AutoencoderConfig | None = None) -> ImageDecoder | None:
        """What makes images of the network's samples; None where there is nothing to decode.

        autoencoder: in place of the one that the data set names. Raises ValueError for latents without an autoencoder,
        or with another than theirs.
        """
        decoder = decoder_of(self.dataset, device, autoencoder)
        if decoder is None and hasattr(self.dataset, "statistics") and not is_image(self.dataset.shape):
            raise ValueError(
                f"{self.path} makes latents of shape {tuple(self.dataset.shape)} and autoencoder = None: expected the "
                f"one that makes images of them, or one of {', '.join((*VAVAE, *STABLE_DIFFUSION))} beside a "
                "published file"
            )
        return decoder

    @property
    def evaluations(self) -> Path:
        """Where rows of measured numbers go: in the run's folder, or beside the file."""
        return RunFolder(self.path).evaluations if self.path.is_dir() else self._beside("evaluations.jsonl")

    @cached_property
    def identity(self) -> str:
        """The sha256 of the weights themselves, the same in a run and in the file that they are exported to."""
        return digest(self.network.state_dict())

    def schedule(self) -> Schedule:
        """The searched schedule that lies with the run, or in the exported file; it may be of other weights, which its
        method says. Raises ValueError where there is none, or it is damaged."""
        if not self.path.is_dir():
            if "schedule" not in (metadata := metadata_of(self.path)):
                raise ValueError(f"{self.path} has no searched schedule, expected one exported from a run that has one")
            return schedules.parsed(metadata["schedule"], f"the schedule in {self.path}")
        file = RunFolder(self.path).schedule
        if not file.exists():
            raise ValueError(f"{self.path} has no {file.name}, expected one that 'facm schedule {self.path}' searches")
        return schedules.read_schedule(file)

    @property
    def samples(self) -> Path:
        """The folder for pictures."""
        return RunFolder(self.path).samples if self.path.is_dir() else self._beside("samples")

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{what}")


def open_newest(folder: RunFolder, run: Run, world: World = ALONE) -> Stored:
    """The newest checkpoint, verified. Raises CheckpointError, naming the one before, if it is damaged or another's,
    FileNotFoundError if the run has not saved one yet."""
    checkpoints = folder.checkpoints()
    if not checkpoints:
        raise _nothing_yet(folder)
    return _open(folder, checkpoints[-1], run, world)


def _nothing_yet(folder: RunFolder) -> FileNotFoundError:
    return FileNotFoundError(f"{folder.path} has no checkpoint yet: let it train, with 'facm resume {folder.path}'")


def _open(folder: RunFolder, file: Path, run: Run, world: World) -> Stored:
    try:
        return open_of_run(file, run, world)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {one_before(file, folder)}") from error


def one_before(file: Path, folder: RunFolder) -> str:
    """What to do where the checkpoint ``file`` cannot be used, in words."""
    earlier = [path for path in folder.checkpoints() if clock_of(path) < clock_of(file)]
    if not earlier:
        return "there is none before it"
    return f"the one before is {earlier[-1]}: delete or move {file.name} to go on from there"


def load_trained(
    path: Path | str,
    sigma_rel: float | None = None,
    raw: bool = False,
    images: int | None = None,
    trust_recipe: bool = False,
) -> Trained:
    """The newest network of the run at ``path``, or the one at an earlier clock.

    sigma_rel: which EMA; one that the run did not track is synthesised from its snapshots; None: the run's first.
    raw: the weights as they are, without EMA.
    images: the clock of a snapshot of a tracked EMA.
    trust_recipe: execute the recipe file that came with the run; see :func:`facm.runs.folder.open_run`.
    Raises ValueError for a combination or a snapshot that there is not.
    """
    if raw and sigma_rel is not None:
        raise ValueError(f"raw = True with sigma_rel = {sigma_rel}: expected one of them, the raw weights or an EMA")
    folder, run = open_run(path, trust_recipe)
    if images is not None:
        return _snapshot(folder, run, images, sigma_rel, raw)
    newest = of_newest(folder, lambda file: _network(folder, run, _open(folder, file, run, ALONE), sigma_rel, raw))
    if newest is None:
        raise _nothing_yet(folder)
    return newest


def _network(folder: RunFolder, run: Run, checkpoint: Stored, sigma_rel: float | None, raw: bool) -> Trained:
    if not raw:
        sigma_rel = run.ema.sigma_rels[0] if sigma_rel is None else sigma_rel
    state = checkpoint.part("network") if sigma_rel is None else _averaged(checkpoint, folder, run, sigma_rel)
    which = "raw" if sigma_rel is None else f"EMA {sigma_rel:g}"
    clock = int(checkpoint.meta["images"])
    found = _built(folder, run, state, checkpoint.path, which, sigma_rel, clock, checkpoint.sha256)
    return replace(found, trained_on=checkpoint.meta.get("data"))


def _snapshot(folder: RunFolder, run: Run, images: int, sigma_rel: float | None, raw: bool) -> Trained:
    sigma_rel = run.ema.sigma_rels[0] if sigma_rel is None else sigma_rel
    kept = {clock: file for clock, length, file in folder.ema_snapshots() if length == sigma_rel}
    if raw or images not in kept:
        raise ValueError(
            f"{folder.path} has no EMA {sigma_rel:g} snapshot at images = {images}{' and never raw ones' * raw}; "
            f"expected one of {', '.join(map(str, kept)) or 'none: every.ema_snapshots = 0'}"
        )
    stored = load_snapshot(kept[images], images, sigma_rel, run)
    which = f"EMA {sigma_rel:g} at {images} images"
    return _built(folder, run, stored.tensors, kept[images], which, sigma_rel, images, stored.sha256)


def _built(
    folder: RunFolder,
    run: Run,
    state: dict[str, torch.Tensor],
    source: Path,
    which: str,
    sigma_rel: float | None,
    images: int,
    sha256: str,
) -> Trained:
    """The run's network with these weights. Raises CheckpointError where they do not fit it, before it takes memory."""
    check_fits(without_memory(run.network.build), {name: value.shape for name, value in state.items()}, str(source))
    network = run.network.build()
    load_strictly(network, state, str(source))
    network.eval().requires_grad_(False)
    interface = as_objective(run.objective).interface
    return Trained(network, run.network, interface, run.data, folder.path, which, sigma_rel, images, sha256)


def _tensors_of_snapshot(file: Path, images: int, sigma_rel: float, run: Run) -> dict[str, torch.Tensor]:
    return load_snapshot(file, images, sigma_rel, run).tensors


def _averaged(checkpoint: Stored, folder: RunFolder, run: Run, sigma_rel: float) -> dict[str, torch.Tensor]:
    if sigma_rel in run.ema.sigma_rels:
        return checkpoint.part(f"ema/{sigma_rel}")
    snapshots = [
        Snapshot(images, length, partial(_tensors_of_snapshot, file, images, length, run))
        for images, length, file in folder.ema_snapshots()
    ]
    if not snapshots:
        raise ValueError(
            f"sigma_rel = {sigma_rel}: this run tracks {run.ema.sigma_rels} and kept no snapshots "
            f"(every.ema_snapshots = {run.every.ema_snapshots}) to synthesise another length from"
        )
    return synthesise(snapshots, int(checkpoint.meta["images"]), sigma_rel, unit_sum=True)


def export(trained: Trained, out: Path, statistics: Statistics | None = None, schedule: Schedule | None = None) -> None:
    """The network's weights under its own names in one safetensors file; its metadata say what they are, so that
    :func:`load_file` needs nothing else but an autoencoder.

    statistics: of its latents. schedule: searched for these weights. Raises ValueError if the file exists,
    CheckpointError where it cannot be written.
    """
    said = {
        "learns_shortcut": spelled(trained.interface.learns_shortcut),
        "sigma_rel": "raw" if trained.sigma_rel is None else str(trained.sigma_rel),
        "images": str(trained.images_seen),
    }
    if trained.interface.bounds != WHOLE:
        said["bounds"] = json.dumps(trained.interface.bounds)
    if not trained.interface.learns_flow:
        said["learns_flow"] = "false"
    if sample_of(trained.config)[0] is None and statistics is None:
        said["shape"] = json.dumps(list(trained.dataset.shape))
        condition = trained.interface.condition
        said["classes"] = json.dumps(condition.classes if isinstance(condition, Labels) else None)
    if statistics is not None:
        said["statistics"] = said_of(statistics)
    if schedule is not None:
        said["schedule"] = schedules.spelled(schedule)
    write_own(out, trained.config, trained.network.state_dict(), said)


@dataclass(frozen=True)
@component
class FromRun(Pretrained):
    """The network of another run: a teacher, or the weights to start from.

    path: its folder.
    sigma_rel: which EMA, as in :func:`load_trained`.
    unfinished: accept a run that has not reached its end.
    """

    path: str
    sigma_rel: Annotated[float, Range(LENGTHS)] | None = None
    unfinished: bool = False

    def load(self) -> torch.nn.Module:
        _, run = open_run(Path(self.path))
        trained = load_trained(Path(self.path), self.sigma_rel)
        assert trained.images_seen is not None
        if trained.images_seen < run.images and not self.unfinished:
            raise ValueError(
                f"the run {self.path} stopped at {trained.images_seen} of {run.images} images: finish it with "
                f"'facm resume {self.path}', or say FromRun(..., unfinished=True)"
            )
        return trained.network

    def label_dropout(self) -> float | None:
        """The fraction of samples that the run trained at the null condition; None if its objective does not say."""
        _, run = open_run(Path(self.path))
        return as_objective(run.objective).label_dropout


def trust_sources(run: Run) -> None:
    """Trust the recipe files of the runs that a run starts or learns from; see :func:`facm.runs.folder.open_run`."""
    for source in (run.teacher, run.initial):
        if isinstance(source, FromRun):
            open_run(Path(source.path), trust_recipe=True)

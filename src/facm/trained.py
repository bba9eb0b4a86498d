"""A network out of a run folder: for sampling, as a teacher, or to start another run from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from facm.checkpoint import CheckpointError, atomically, load_strictly
from facm.ema import Snapshot, synthesise
from facm.parallel.storage import Stored, load, open_stored
from facm.parallel.world import ALONE, World
from facm.record import RunFolder, open_run
from facm.run import Run, to_json
from facm.types import Data, NetworkConfig, Objective


@dataclass(frozen=True)
class Trained:
    """A network in eval mode, how it is asked, and which weights these are.

    objective: its condition and task say how the network is asked. data: what it was trained on, which says the shape of
    a sample. path: the run's folder, or the published file. which: "EMA 0.05", "raw", or the part of a published file.
    sigma_rel: length of the EMA, None for raw weights and where a file does not say. images_seen: the clock, None where
    a file does not say. checkpoint_sha256: of the checkpoint.
    """

    network: torch.nn.Module
    config: NetworkConfig
    objective: Objective
    data: Data
    path: Path
    which: str
    sigma_rel: float | None
    images_seen: int | None
    checkpoint_sha256: str

    @property
    def evaluations(self) -> Path:
        """Where rows of measured numbers go: in the run's folder, or beside the file."""
        return self.path / "evaluations.jsonl" if self.path.is_dir() else self._beside("evaluations.jsonl")

    @property
    def samples(self) -> Path:
        """The folder for pictures."""
        return self.path / "samples" if self.path.is_dir() else self._beside("samples")

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{what}")


def newest_checkpoint(folder: RunFolder) -> Path:
    """Raises FileNotFoundError if the run has not saved one yet."""
    checkpoints = folder.checkpoints()
    if not checkpoints:
        raise FileNotFoundError(f"{folder.path} has no checkpoint yet: let it train, with 'facm resume {folder.path}'")
    return checkpoints[-1]


def open_newest(folder: RunFolder, world: World = ALONE) -> Stored:
    """The newest checkpoint, verified. Raises CheckpointError, naming the one before, if it is damaged."""
    file = newest_checkpoint(folder)
    try:
        return open_stored(file, world)
    except CheckpointError as error:
        hint = "there is none before it"
        if earlier := folder.checkpoints()[:-1]:
            hint = f"the one before is {earlier[-1]}: delete or move {file.name} to go on from there"
        raise CheckpointError(f"{error}; {hint}") from error


def load_trained(path: Path, sigma_rel: float | None = None, raw: bool = False) -> Trained:
    """The newest network of the run at ``path``.

    sigma_rel: which EMA; one that the run did not track is synthesised from its snapshots; None: the run's first.
    raw: the weights as they are, without EMA.
    """
    if raw and sigma_rel is not None:
        raise ValueError(f"--raw with --ema {sigma_rel}: expected one of them, the raw weights or an EMA")
    folder, run = open_run(path)
    checkpoint = open_newest(folder)
    images_seen = int(checkpoint.meta["images"])
    if not raw:
        sigma_rel = run.ema.sigma_rels[0] if sigma_rel is None else sigma_rel
    state = checkpoint.part("network") if sigma_rel is None else _averaged(checkpoint, folder, run, sigma_rel)
    network = run.network.build()
    load_strictly(network, state, str(checkpoint.path))
    network.eval().requires_grad_(False)
    which = "raw" if sigma_rel is None else f"EMA {sigma_rel:g}"
    return Trained(
        network, run.network, run.objective, run.data, path, which, sigma_rel, images_seen, checkpoint.sha256
    )


def _averaged(checkpoint: Stored, folder: RunFolder, run: Run, sigma_rel: float) -> dict[str, torch.Tensor]:
    if sigma_rel in run.ema.sigma_rels:
        return checkpoint.part(f"ema/{sigma_rel}")
    snapshots = [
        Snapshot(images, length, lambda file=file: load(file).tensors)  # type: ignore[misc]
        for images, length, file in folder.ema_snapshots()
    ]
    if not snapshots:
        raise ValueError(
            f"--ema {sigma_rel}: this run tracks {run.ema.sigma_rels} and kept no snapshots (every.ema_snapshots = "
            f"{run.every.ema_snapshots}) to synthesise another length from"
        )
    return synthesise(snapshots, int(checkpoint.meta["images"]), sigma_rel, unit_sum=True)


def export(trained: Trained, out: Path) -> None:
    """The network's weights under its own names in one safetensors file; its metadata say what they are.

    config: the network's configuration as JSON; sigma_rel: of the EMA, or "raw"; images: the clock.
    Raises CheckpointError if the file exists or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if out.exists():
        raise CheckpointError(f"{out} exists and is not overwritten")
    metadata = {
        "format": "pt",
        "config": json.dumps(to_json(trained.config)),
        "sigma_rel": "raw" if trained.sigma_rel is None else str(trained.sigma_rel),
        "images": str(trained.images_seen),
    }
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in trained.network.state_dict().items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomically(out) as partial:
            save_file(weights, partial, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {out}: {error}") from error


@dataclass(frozen=True)
class FromRun:
    """The network of another run: a teacher, or the weights to start from.

    path: its folder. sigma_rel: which EMA, as in :func:`load_trained`. unfinished: accept a run that has not reached
    its end.
    """

    path: str
    sigma_rel: float | None = None
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
        return getattr(run.objective, "label_dropout", None)

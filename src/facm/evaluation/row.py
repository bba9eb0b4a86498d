"""One line of evaluations.jsonl: measured numbers with all that is needed to get them again."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from facm.core.serialize import to_json
from facm.distributed.collectives import by_first
from facm.distributed.process_group import ALONE, World
from facm.evaluation.evaluator import CLIPEvaluator, Evaluator
from facm.evaluation.metrics import Measurement
from facm.evaluation.samples import Sampling
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.pretrained.trained import Trained
from facm.runs import log as logs
from facm.runs.environment import environment
from facm.sampling.methods import Method
from facm.sampling.source import Source


@dataclass(frozen=True)
class Row:
    """A measurement and its provenance.

    measurement: the numbers, and what they are relative to.
    method: how the samples were made of noise.
    guidance: with which strength, and where.
    sigma_rel: length of the network's EMA, None for raw weights.
    weights: which weights, in words.
    images: the network's clock, None where its file does not say it.
    checkpoint: sha256 of the file with its weights.
    seed: of the samples.
    labels: "balanced", "random" or "none".
    frames_per_clip: of each sample so many frames were measured, which ``n`` counts; None where samples are no clips.
    quantised: how the samples got their 8 bits, in words; "no" where they are no images.
    autoencoder: identity of what decoded them, or None.
    reference_file: the file of statistics that they were measured against, or None.
    reference_file_sha256: its hash.
    date: local time, ISO 8601.
    device: where the samples were drawn.
    network_precision: "fp32" or "bf16", of the network that they were drawn from.
    threads: of PyTorch on the CPU.
    commit: of this package, where it runs from a repository.
    versions: package -> version.
    seconds: that the evaluation took.
    """

    measurement: Measurement
    method: Method
    guidance: Guidance
    sigma_rel: float | None
    weights: str
    images: int | None
    checkpoint: str
    seed: int
    labels: str
    frames_per_clip: int | None
    quantised: str
    autoencoder: str | None
    reference_file: str | None
    reference_file_sha256: str | None
    date: str
    device: str
    network_precision: str
    threads: int
    commit: str | None
    versions: dict[str, str]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The numbers and the provenance side by side, as evaluations.jsonl has them."""
        numbers = dataclasses.asdict(self.measurement)
        return {
            **numbers,
            "not_comparable": list(self.measurement.not_comparable),
            "nfe": self.method.nfe,
            "sampler": type(self.method).__name__.lower(),
            "method": to_json(self.method),
            "guidance": to_json(self.guidance),
            "ema": self.sigma_rel,
            "weights": self.weights,
            "images": self.images,
            "checkpoint": self.checkpoint,
            "seed": self.seed,
            "labels": self.labels,
            "frames_per_clip": self.frames_per_clip,
            "quantised": self.quantised,
            "autoencoder": self.autoencoder,
            "reference_file": self.reference_file,
            "reference_file_sha256": self.reference_file_sha256,
            "date": self.date,
            "device": self.device,
            "network_precision": self.network_precision,
            "threads": self.threads,
            "commit": self.commit,
            "versions": self.versions,
            "seconds": self.seconds,
        }


def append_row(trained: Trained, row: Row, world: World = ALONE) -> None:
    """Append the row to the run's evaluations.jsonl, or to the one beside a published file. The first rank writes."""
    by_first(world, lambda: logs.append(trained.evaluations, {"run": str(trained.path), **row.to_json()}))


def row_of(
    trained: Trained,
    sampling: Sampling,
    evaluator: Evaluator | CLIPEvaluator,
    source: Source,
    measurement: Measurement,
    seconds: float,
) -> Row:
    """The row of a measurement that has just been made here."""
    where = environment()
    return Row(
        measurement=measurement,
        method=sampling.method,
        guidance=sampling.guidance,
        sigma_rel=trained.sigma_rel,
        weights=trained.which,
        images=trained.images_seen,
        checkpoint=trained.checkpoint_sha256,
        seed=sampling.seed,
        labels=sampling.labels if isinstance(source.condition, Labels) else "none",
        frames_per_clip=sampling.frames(source.shape),
        quantised=_quantised(evaluator),
        autoencoder=None if sampling.decoder is None else sampling.decoder.identity,
        reference_file=None if evaluator.reference is None else evaluator.reference.file,
        reference_file_sha256=None if evaluator.reference is None else evaluator.reference.file_sha256,
        date=time.strftime("%Y-%m-%dT%H:%M:%S"),
        device=str(evaluator.device),
        network_precision=trained.precision,
        threads=where["threads"],
        commit=(where["git"] or {}).get("commit"),
        versions=where["versions"],
        seconds=seconds,
    )


def _quantised(evaluator: Evaluator | CLIPEvaluator) -> str:
    shape = None if evaluator.reference is None else evaluator.reference.shape  # None: of images
    images = shape is None or len(shape) == 3
    return {"round": "rounded to 8 bits", "truncate": "truncated to 8 bits"}[evaluator.quantise] if images else "no"

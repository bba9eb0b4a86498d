"""What the tests of studies share: a setting that trains in a moment, cheap features, run folders written by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.serialize import to_json
from facm.data import Digits, InMemory
from facm.evaluation.evaluator import Evaluator, build_evaluator
from facm.flow.conditions import Labels
from facm.flow.guidance import NO_GUIDANCE
from facm.runs import log as logs
from facm.runs.config import Intervals
from facm.runs.folder import create
from facm.runs.optim import AdamW
from facm.studies.rows import Bench
from facm.studies.scales import Setting, digits
from facm.studies.study import Entry, Study
from facm.studies.train_and_measure import SEED_OF_EVALUATION, Wanted, wanted

N = 40


@dataclass(frozen=True)
class Few:
    """The first digits."""

    n: int = 200

    def open(self) -> InMemory:
        images, labels = _digits()
        return InMemory(images[: self.n], labels[: self.n], num_classes=10, name="Few")


@cache
def _digits() -> tuple[Any, Any]:
    whole = Digits().open()
    return whole.images, whole.labels


@dataclass(frozen=True)
class Quarters:
    """The means of an image's four quarters: features that need few samples."""

    def build(self, dataset: Any, device: Any = "cpu") -> nn.Module:
        return _Quarters()


class _Quarters(nn.Module):
    num_features, identity, num_classes = 4, "quarters", None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@dataclass(frozen=True)
class Products:
    """A network of ``depth`` equal matrix products and nothing else that counts."""

    depth: int = 4
    num_classes: int = 10
    auxiliary_time: bool = False

    def build(self) -> nn.Module:
        return _Products(self.depth, self.auxiliary_time)


class _Products(nn.Module):
    def __init__(self, depth: int, auxiliary_time: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.auxiliary_time = auxiliary_time

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        h = x.flatten(1) + t[:, None] + (0 if r is None else r[:, None])
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return h.reshape(x.shape)


def setting(**changes: Any) -> Setting:
    """The digits' setting for runs of four to six steps."""
    full, adam = digits(), AdamW(lr=1e-3)
    tiny = replace(
        full,
        network=dataclasses.replace(full.network, hidden_size=32, depth=1, num_heads=2),
        data=Few(),
        condition=Labels(10),
        teacher_images=96,
        images=64,
        scratch_images=64,
        teacher_optimizer=adam,
        optimizer=adam,
        scratch_optimizer=adam,
        every=Intervals(log=16, checkpoint=32, ema_snapshots=32),
        batch_size=16,
        teacher_nfe=4,
        n=N,
    )
    return replace(tiny, **changes)


def bench(home: Path, seed: int = 0, **changes: Any) -> Bench:
    return Bench(setting(**changes), home / f"seed-{seed}", seed)


def pair(made: Bench) -> Study:
    """FACM and consistency without its anchor, from one teacher."""
    return Study(
        title="Pair",
        source="Sec. 0",
        question="Which?",
        teachers=(made.teacher(),),
        entries=(replace(made.facm(), published={1: 1.76, 2: 1.5}), made.plain()),
    )


def an_evaluator() -> Evaluator:
    return build_evaluator(Few().open(), torch.device("cpu"), Quarters())


def row(entry: Entry, want: Wanted, distance: float, **changes: Any) -> dict[str, Any]:
    """An evaluation's row as far as a study reads it."""
    return {
        "nfe": want.nfe,
        "sampler": type(want.method).__name__.lower(),
        "method": to_json(want.method),
        "guidance": to_json(NO_GUIDANCE),
        "ema": entry.run.ema.sigma_rels[0],
        "images": entry.run.images if want.images is None else want.images,
        "n": N,
        "seed": SEED_OF_EVALUATION,
        "features": "quarters",
        "frechet_distance": distance,
        "accuracy": None,
        **changes,
    }


def written(path: Path, entry: Entry, distances: Mapping[int, float], log: Sequence[dict[str, Any]] = ()) -> None:
    """A run folder that looks measured: steps -> distance at the end, the same plus 1 at each earlier clock."""
    folder = create(path, entry.run)
    for want in wanted(entry):
        if want.nfe in distances:
            value = distances[want.nfe] + (want.images is not None)
            logs.append(folder.evaluations, row(entry, want, value, accuracy=0.5))
    for record in log:
        logs.append(folder.log, {"skipped": 0, "tangent_rms": 1.0, **record})


def stop(path: Path, images: int) -> None:
    (path / "stopped.json").write_text(json.dumps({"error": "too many", "images": images}))

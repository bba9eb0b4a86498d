"""One evaluation: samples from a trained network, measured against its data, and the row that makes it reproducible."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm import logs
from facm.conditions import Condition
from facm.evaluation.classifier import SmallClassifier
from facm.evaluation.features import FeatureExtractor, Features, Identity
from facm.evaluation.metrics import Measure, Reference, build_reference
from facm.generate import Consistency, Euler, Method, Source, balanced_labels, blocks, sample
from facm.guidance import NO_GUIDANCE, Guidance
from facm.parallel.agree import by_first, check_same, in_order, meet
from facm.parallel.world import ALONE, World
from facm.record import environment
from facm.run import to_json
from facm.tasks import ExpandedInterval
from facm.trained import Trained
from facm.types import Dataset, Objective


@dataclass(frozen=True)
class Judge:
    """A feature extractor and the real data's statistics in it."""

    dataset: Dataset
    extractor: FeatureExtractor
    reference: Reference


def judge(dataset: Dataset, device: torch.device, features: Features | None = None, world: World = ALONE) -> Judge:
    """features: the plug; None: a small classifier trained on the data where it has labelled images, else the samples
    themselves. The first rank makes both; the others find the classifier in the cache.

    Raises ValueError where the ranks end up with different features."""
    if features is None:
        classifies = dataset.num_classes is not None and len(dataset.shape) == 3
        features = SmallClassifier() if classifies else Identity()
    if not world.first:
        meet(world)
    extractor = features.build(dataset, device)
    if world.first:
        meet(world)
    check_same(world, "the feature network (is the cache, FACM_CACHE, shared by all machines?)", extractor.identity)
    return Judge(dataset, extractor, by_first(world, lambda: build_reference(dataset, extractor)))


def source_of(trained: Trained, shape: tuple[int, ...], device: torch.device) -> Source:
    """How the run's network is asked, read off its objective."""
    objective: Any = trained.objective
    condition: Condition | None = getattr(objective, "condition", None)
    if condition is None:
        raise ValueError(f"the objective {objective!r} has no attribute 'condition': sampling needs to know the null")
    task = getattr(objective, "task", None) or ExpandedInterval()
    return Source(trained.network.to(device), task, condition, shape, device)


def evaluate(
    trained: Trained,
    method: Method,
    judged: Judge,
    *,
    n: int,
    seed: int = 0,
    guidance: Guidance = NO_GUIDANCE,
    batch_size: int = 256,
    device: torch.device | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Generate n samples with balanced labels and measure them; the row is appended to the run's evaluations.jsonl.

    The ranks share the batches, and the first one measures them in order: the numbers are the same on any number.

    Raises ValueError for n < 2, and for samples that are not finite.
    """
    if n < 2:
        raise ValueError(f"n = {n}, expected at least 2 samples to measure")
    device = device or world.device
    began = time.monotonic()
    source = source_of(trained, judged.dataset.shape, device)
    measure = Measure(judged.extractor, judged.reference, accuracy=None if judged.dataset.num_classes else False)

    def one(indices: range) -> tuple[Tensor, Tensor | None]:
        labels = balanced_labels(source.condition, indices)
        return measure.extract(sample(source, method, indices, labels, seed, guidance), labels)

    for _, (found, correct) in in_order(world, blocks(n, batch_size), one):
        assert found is not None
        measure.add(found, correct)

    def row() -> dict[str, Any]:
        row = _row(trained, method, judged, measure, seed, guidance, device) | {"seconds": time.monotonic() - began}
        logs.append(trained.evaluations, {"run": str(trained.path), **row})
        return row

    return by_first(world, row)


def _row(
    trained: Trained,
    method: Method,
    judged: Judge,
    measure: Measure,
    seed: int,
    guidance: Guidance,
    device: torch.device,
) -> dict[str, Any]:
    """The numbers, and all that is needed to get them again."""
    result = dataclasses.asdict(measure.result())
    where = environment()
    return {
        **result,
        "nfe": method.nfe,
        "sampler": type(method).__name__.lower(),
        "method": to_json(method),
        "guidance": to_json(guidance),
        "ema": trained.sigma_rel,
        "weights": trained.which,
        "images": trained.images_seen,
        "checkpoint": trained.checkpoint_sha256,
        "seed": seed,
        "labels": "balanced",
        "quantised": "rounded to 8 bits" if len(judged.dataset.shape) == 3 else "no",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "device": str(device),
        "threads": where["threads"],
        "commit": (where["git"] or {}).get("commit"),
        "versions": where["versions"],
    }


def default_method(objective: Objective, nfe: int) -> Method:
    """Consistency for an objective that learns the shortcut (it says ``learns_shortcut = True``), else Euler."""
    return Consistency(nfe) if getattr(objective, "learns_shortcut", False) else Euler(nfe)

"""One evaluation: samples from a trained network, measured against its data, and the row that makes it reproducible."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch

from facm import logs
from facm.conditions import Condition
from facm.evaluation.classifier import SmallClassifier
from facm.evaluation.features import FeatureExtractor, Features, Identity
from facm.evaluation.metrics import Measure, Reference, build_reference
from facm.generate import Consistency, Euler, Method, Source, sample_many
from facm.guidance import NO_GUIDANCE, Guidance
from facm.record import environment
from facm.run import Run, to_json
from facm.tasks import ExpandedInterval
from facm.trained import Trained
from facm.types import Dataset


@dataclass(frozen=True)
class Judge:
    """A feature extractor and the real data's statistics in it."""

    dataset: Dataset
    extractor: FeatureExtractor
    reference: Reference


def judge(dataset: Dataset, device: torch.device, features: Features | None = None) -> Judge:
    """features: the plug; None: a small classifier trained on the data where it has labelled images, else the samples
    themselves."""
    if features is None:
        classifies = dataset.num_classes is not None and len(dataset.shape) == 3
        features = SmallClassifier() if classifies else Identity()
    extractor = features.build(dataset, device)
    return Judge(dataset, extractor, build_reference(dataset, extractor))


def source_of(trained: Trained, shape: tuple[int, ...], device: torch.device) -> Source:
    """How the run's network is asked, read off its objective."""
    objective: Any = trained.run.objective
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
) -> dict[str, Any]:
    """Generate n samples with balanced labels and measure them; the row is appended to the run's evaluations.jsonl.

    Raises ValueError for n < 2, and for samples that are not finite.
    """
    if n < 2:
        raise ValueError(f"n = {n}, expected at least 2 samples to measure")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.monotonic()
    source = source_of(trained, judged.dataset.shape, device)
    measure = Measure(judged.extractor, judged.reference, accuracy=None if judged.dataset.num_classes else False)
    for x, labels in sample_many(source, method, n, seed, guidance, batch_size):
        measure.update(x, labels)
    result = dataclasses.asdict(measure.result())
    where = environment()
    row = {
        **result,
        "nfe": method.nfe,
        "sampler": type(method).__name__.lower(),
        "method": to_json(method),
        "guidance": to_json(guidance),
        "ema": trained.sigma_rel,
        "images": trained.images_seen,
        "checkpoint": trained.checkpoint_sha256,
        "seed": seed,
        "labels": "balanced",
        "quantised": "rounded to 8 bits" if len(judged.dataset.shape) == 3 else "no",
        "seconds": time.monotonic() - began,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "device": str(device),
        "threads": where["threads"],
        "commit": (where["git"] or {}).get("commit"),
        "versions": where["versions"],
    }
    logs.append(trained.folder.evaluations, {"run": str(trained.folder.path), **row})
    return row


def default_method(run: Run, nfe: int) -> Method:
    """Consistency for a run that learns the shortcut (the objective says ``learns_shortcut = True``), else Euler."""
    return Consistency(nfe) if getattr(run.objective, "learns_shortcut", False) else Euler(nfe)

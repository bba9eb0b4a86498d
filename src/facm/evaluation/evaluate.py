"""One evaluation: samples from a trained network, measured against its data, and the row that makes it reproducible."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from facm.core.objective import Condition
from facm.core.serialize import to_json
from facm.distributed.collectives import by_first, in_order
from facm.distributed.process_group import ALONE, World
from facm.evaluation.evaluator import Judge
from facm.evaluation.features import Quantise, check_quantise
from facm.evaluation.metrics import Measure, check_enough
from facm.evaluation.reference import KEEP, Reference
from facm.flow.conditions import Labels
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.flow.time_conditioning import ExpandedInterval
from facm.pretrained.trained import Trained
from facm.runs import log as logs
from facm.runs.environment import environment
from facm.sampling.generate import Source, balanced_labels, blocks, random_labels, sample
from facm.sampling.methods import Method

LabelDraw = Literal["balanced", "random"]


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
    labels: LabelDraw = "balanced",
    quantise: Quantise = "round",
    decode: Callable[[Tensor], Tensor] | None = None,
    autoencoder: str | None = None,
    shape: tuple[int, ...] | None = None,
    keep: int = KEEP,
    small_n: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Generate n samples and measure them; the row is appended to the run's evaluations.jsonl.

    The ranks share the batches, and the first one measures them in order: the numbers are the same on any number.

    labels: "balanced", sample i has label i mod classes; "random", a function of (seed, i), as where papers draw them.
    quantise: how generated images get their 8 bits, "round" or "truncate".
    decode: turns samples (B, *shape), latents, into images (B, C, H, W) about [-1, 1]; autoencoder: its identity, for
    the row. shape: of one sample; None: the data set's, which needs one and no decoding.
    keep: features of so many samples are kept for precision, recall and KID.
    small_n: accept fewer samples than features under a published metric's name.
    progress: called on the first rank as (samples measured, n) after every batch.

    Raises ValueError for n < 2, for fewer samples than a named metric needs, and for samples that are not finite.
    """
    if n < 2:
        raise ValueError(f"n = {n}, expected at least 2 samples to measure")
    if labels not in ("balanced", "random"):
        raise ValueError(f"labels = {labels!r}, expected 'balanced' or 'random'")
    check_quantise(quantise)
    if not small_n:
        check_enough(n, judged.extractor, judged.reference)
    if autoencoder is not None and decode is None:
        raise ValueError(f"autoencoder = {autoencoder!r} without decode: expected the function that it decodes with")
    device = device or world.device
    began = time.monotonic()
    source = source_of(trained, shape or _shape_of_data(judged, decode), device)
    labelled = isinstance(source.condition, Labels) and judged.data is not None and judged.data.num_classes is not None
    measure = Measure(
        judged.extractor,
        judged.reference,
        accuracy=None if labelled else False,
        keep=keep,
        n=n,
        quantise=quantise,
        small_n=small_n,
    )

    def one(indices: range) -> tuple[Tensor | None, ...]:
        if labels == "balanced":
            cond = balanced_labels(source.condition, indices)
        else:
            cond = random_labels(source.condition, indices, seed)
        x = sample(source, method, indices, cond, seed, guidance)
        if decode is not None:
            with torch.no_grad():
                x = decode(x)
        return measure.extract(x, cond)

    for indices, (found, correct, logits) in in_order(world, blocks(n, batch_size), one):
        assert found is not None
        measure.add(found, correct, logits)
        if progress is not None:
            progress(indices.stop, n)

    drawn = {
        "labels": labels if isinstance(source.condition, Labels) else "none",
        "quantised": _quantised(judged.reference, quantise),
        "autoencoder": autoencoder if decode is None or autoencoder is not None else "unnamed",
        "reference_file": judged.reference.file,
        "reference_file_sha256": judged.reference.file_sha256,
    }

    def row() -> dict[str, Any]:
        row = _row(trained, method, drawn, measure, seed, guidance, device) | {"seconds": time.monotonic() - began}
        logs.append(trained.evaluations, {"run": str(trained.path), **row})
        return row

    return by_first(world, row)


def _shape_of_data(judged: Judge, decode: Callable[[Tensor], Tensor] | None) -> tuple[int, ...]:
    if decode is not None:
        raise ValueError("shape = None with decode, expected the shape of one latent: the data set's is that of images")
    if judged.data is None:
        raise ValueError(
            "shape = None and the judge has no data set, expected the shape of one sample, e.g. (3, 32, 32)"
        )
    return tuple(judged.data.shape)


def _quantised(reference: Reference, how: Quantise) -> str:
    images = reference.shape is None or len(reference.shape) == 3
    return {"round": "rounded to 8 bits", "truncate": "truncated to 8 bits"}[how] if images else "no"


def _row(
    trained: Trained,
    method: Method,
    drawn: dict[str, Any],
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
        "not_comparable": list(result["not_comparable"]),
        "nfe": method.nfe,
        "sampler": type(method).__name__.lower(),
        "method": to_json(method),
        "guidance": to_json(guidance),
        "ema": trained.sigma_rel,
        "weights": trained.which,
        "images": trained.images_seen,
        "checkpoint": trained.checkpoint_sha256,
        "seed": seed,
        **drawn,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "device": str(device),
        "threads": where["threads"],
        "commit": (where["git"] or {}).get("commit"),
        "versions": where["versions"],
    }

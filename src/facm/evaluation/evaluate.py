"""One evaluation: samples from a trained network, measured against real data."""

from __future__ import annotations

import time

import numpy as np
from torch import Tensor

from facm.core.cond import Cond
from facm.core.types import Dataset, HasPrompts
from facm.data.checked import first_indices
from facm.distributed.collectives import by_first, in_order
from facm.evaluation.evaluator import Evaluator
from facm.evaluation.row import Row, row_of
from facm.evaluation.samples import Sampling
from facm.flow.conditions import Labels
from facm.pretrained.trained import Trained
from facm.sampling.generate import blocks
from facm.sampling.source import Source


def evaluate(trained: Trained, sampling: Sampling, evaluator: Evaluator) -> Row:
    """Draw samples and measure them; :func:`facm.evaluation.append_row` keeps the row, which is the same on all ranks.

    The ranks share the batches, and the first one measures them in order: the numbers do not depend on how many ranks
    there are.

    Raises ValueError for fewer samples than a named metric needs, and for samples that are not finite.
    """
    began = time.monotonic()
    source = trained.source(evaluator.device)
    labelled = isinstance(source.condition, Labels) and evaluator.classes_are_the_data_sets
    measure = evaluator.measure(sampling.n, accuracy=None if labelled else False)

    def extracted(indices: range) -> tuple[Tensor | None, ...]:
        cond = _cond(trained.dataset, sampling, source, indices)
        labels = cond if isinstance(cond, Tensor) else None
        return measure.extract(sampling.draw(source, indices, cond), labels)

    batches = blocks(sampling.n, sampling.batch_size)
    for indices, (features, correct, logits) in in_order(evaluator.world, batches, extracted):
        assert features is not None
        measure.add(features, correct, logits)
        if evaluator.progress is not None:
            evaluator.progress(indices.stop, sampling.n)

    def row() -> Row:
        measurement = measure.result()
        return row_of(trained, sampling, evaluator, source.condition, measurement, time.monotonic() - began)

    return by_first(evaluator.world, row)


def _cond(dataset: Dataset, sampling: Sampling, source: Source, indices: range) -> Cond:
    """The labels of samples ``indices``, or the prompts of the data set, of its first bucket where there are several,
    in their order, again and again; of
    several buckets, the first."""
    if isinstance(dataset, HasPrompts):
        first = first_indices(dataset, len(dataset))
        return dataset.read(first[np.array(indices) % len(first)]).cond
    return sampling.cond(source.condition, indices)

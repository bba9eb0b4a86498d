"""Measuring generated samples against a data set, batch by batch at constant memory.

extractor = SmallClassifier().build(dataset, device)
reference = build_reference(dataset, extractor)
measure = Measure(extractor, reference)
for x, labels in generated:
    measure.update(x, labels)
print(measure.result())
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from facm.evaluation.features import FeatureExtractor, read_blocks
from facm.evaluation.frechet import Moments, frechet_distance
from facm.evaluation.neighbours import precision_recall
from facm.types import Dataset

_NEIGHBOURS = 3


@dataclass(frozen=True)
class Measurement:
    """The result, with what it is relative to.

    frechet_distance: squared Frechet distance in the features named by ``features``, >= 0, lower is better; "FID" only
    where those are FID's Inception network. precision, recall: in [0, 1], None with three samples or fewer on a side.
    accuracy: share of samples classified as the label they were generated for, None where not asked for.
    n, n_reference: generated and real samples. reference: fingerprint of the real features.
    """

    frechet_distance: float
    precision: float | None
    recall: float | None
    accuracy: float | None
    n: int
    n_reference: int
    features: str
    reference: str


@dataclass(frozen=True)
class Reference:
    """What is kept of the real data; see :func:`build_reference`.

    mean (F,) and covariance (F, F), float64; rows (<= keep, F) float32, for precision and recall; shape of one sample;
    fingerprint: sha256 of all real features, in order; features: identity of the network they came from.
    """

    mean: Tensor = field(repr=False)
    covariance: Tensor = field(repr=False)
    rows: Tensor = field(repr=False)
    n: int
    shape: tuple[int, ...]
    fingerprint: str
    features: str


def build_reference(
    dataset: Dataset, extractor: FeatureExtractor, *, keep: int = 10_000, batch_size: int = 500
) -> Reference:
    """Statistics of all samples of ``dataset``; ``keep`` of them, evenly spaced (a data set may be sorted by class),
    stay for precision and recall.

    Raises ValueError below two samples, for non-finite samples and for images (C, H, W) outside [-1, 1].
    """
    n = len(dataset)
    if n < 2:
        raise ValueError(f"the data set has n = {n} samples, expected at least 2")
    _check_positive(keep=keep, batch_size=batch_size)
    kept = torch.zeros(n, dtype=torch.bool)
    kept[torch.linspace(0, n - 1, min(n, keep), dtype=torch.float64).round().long()] = True
    moments, digest, rows = Moments(extractor.num_features), hashlib.sha256(), []
    for batch in read_blocks(dataset, np.arange(n), batch_size):
        start = moments.n
        found = _real_features(extractor, batch.x_1)
        moments.add(found)
        digest.update(found.numpy().data)
        rows.append(found[kept[start : moments.n]])
    return Reference(
        moments.mean,
        moments.covariance(),
        torch.cat(rows),
        n,
        tuple(dataset.shape),
        digest.hexdigest(),
        extractor.identity,
    )


class Measure:
    """Accumulates generated batches; ``result()`` may be called at any time and again later.

    Memory is constant: the moments (F, F), and features for precision and recall of the first ``keep`` samples fed, so
    feed them in random order of class. ``accuracy``: whether to compare ``extractor.classify`` with the labels; None
    means where the extractor classifies, False is for unconditional generators.
    """

    def __init__(
        self, extractor: FeatureExtractor, reference: Reference, *, accuracy: bool | None = None, keep: int = 10_000
    ) -> None:
        if extractor.identity != reference.features:
            raise ValueError(f"extractor is {extractor.identity!r}, expected the reference's {reference.features!r}")
        if accuracy and extractor.num_classes is None:
            raise ValueError(f"accuracy=True, expected False or None: {extractor.identity!r} does not classify")
        _check_positive(keep=keep)
        self._extractor = extractor
        self._reference = reference
        self._accuracy = extractor.num_classes is not None if accuracy is None else accuracy
        self._keep = keep
        self._moments = Moments(extractor.num_features)
        self._rows: list[Tensor] = []
        self._kept = 0
        self._correct = 0

    def update(self, x: Tensor, labels: Tensor | None = None) -> None:
        """x (B, ...) generated samples, images in [-1, 1] (quantised here to 8 bits); labels (B,) int64 in [0, K).

        Raises ValueError for a wrong shape, non-finite samples, and labels that are missing, misshapen or out of range.
        A batch that raises leaves no trace.
        """
        self.add(*self.extract(x, labels))

    def extract(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What :meth:`add` takes in of a batch, a function of the batch alone: features (B, F) on the CPU, and how many
        samples are classified right () or None where not asked for. See :meth:`update`."""
        _check_samples("generated", x, self._reference.shape)
        if self._accuracy:
            labels = self._checked_labels(labels, len(x))
        x = _as_stored(x)
        found = _features(self._extractor, x)
        correct = None
        if self._accuracy and labels is not None:
            with torch.no_grad():
                predicted = self._extractor.classify(x.to(_device(self._extractor, x))).argmax(1)
            correct = (predicted.cpu() == labels.cpu()).sum()
        return found, correct

    def add(self, found: Tensor, correct: Tensor | None) -> None:
        """Take in a batch from :meth:`extract`."""
        self._correct += 0 if correct is None else int(correct)
        self._moments.add(found)
        if self._kept < self._keep:
            self._rows.append(found[: self._keep - self._kept].clone())
            self._kept += len(self._rows[-1])

    def result(self) -> Measurement:
        """Raises ValueError below two samples."""
        n, reference = self._moments.n, self._reference
        if n < 2:
            raise ValueError(f"n = {n} generated samples, expected at least 2")
        distance = frechet_distance(
            self._moments.mean, self._moments.covariance(), reference.mean, reference.covariance
        )
        precision: float | None = None
        recall: float | None = None
        if min(self._kept, len(reference.rows)) > _NEIGHBOURS:
            precision, recall = precision_recall(reference.rows, torch.cat(self._rows), _NEIGHBOURS)
        return Measurement(
            frechet_distance=distance,
            precision=precision,
            recall=recall,
            accuracy=self._correct / n if self._accuracy else None,
            n=n,
            n_reference=reference.n,
            features=reference.features,
            reference=reference.fingerprint,
        )

    def _checked_labels(self, labels: Tensor | None, n: int) -> Tensor:
        classes = self._extractor.num_classes
        if labels is None:
            raise ValueError(f"labels is None, expected ({n},) class labels, or accuracy=False for this Measure")
        if labels.shape != (n,) or labels.is_floating_point():
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected int64 of shape ({n},)"
            )
        if n and (int(labels.min()) < 0 or int(labels.max()) >= (classes or 0)):
            raise ValueError(
                f"labels run over [{int(labels.min())}, {int(labels.max())}], expected them within [0, {classes})"
            )
        return labels


def reference_floor(dataset: Dataset, extractor: FeatureExtractor, *, seed: int = 0, batch_size: int = 500) -> float:
    """Frechet distance of a random half of the real samples to the other half: what a perfect generator would score
    with that few samples, and so the value below which differences mean nothing.

    Raises ValueError below four samples.
    """
    n = len(dataset)
    if n < 4:
        raise ValueError(f"the data set has n = {n} samples, expected at least 4 to halve")
    order = np.random.default_rng(seed).permutation(n)
    halves = []
    for half in (order[: n // 2], order[n // 2 :]):
        moments = Moments(extractor.num_features)
        for batch in read_blocks(dataset, np.sort(half), batch_size):
            moments.add(_real_features(extractor, batch.x_1))
        halves.append(moments)
    a, b = halves
    return frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())


def quantise(x: Tensor) -> Tensor:
    """Images as they would be stored: x (B, C, H, W) -> the nearest of the 256 levels of [-1, 1], same shape, float32.

    Values outside [-1, 1] are clamped, the rest is rounded: truncating would darken every image by half a level.
    """
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected images (B, C, H, W)")
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def _real_features(extractor: FeatureExtractor, x: Tensor) -> Tensor:
    _check_samples("real", x, tuple(x.shape[1:]))
    if x.ndim == 4 and float(x.abs().max()) > 1 + 1e-4:  # clamping would hide that these are latents, or bytes
        raise ValueError(f"real images run over [{float(x.min()):g}, {float(x.max()):g}], expected [-1, 1]")
    return _features(extractor, _as_stored(x))


def _features(extractor: FeatureExtractor, x: Tensor) -> Tensor:
    """Samples (B, ...) -> features (B, F) float32 on the CPU."""
    with torch.no_grad():
        found = extractor(x.to(_device(extractor, x))).float().cpu()
    if found.shape != (len(x), extractor.num_features):
        raise ValueError(
            f"{extractor.identity!r} returned {tuple(found.shape)}, expected {(len(x), extractor.num_features)}"
        )
    return found.contiguous()


def _as_stored(x: Tensor) -> Tensor:
    return quantise(x) if x.ndim == 4 else x


def _device(extractor: FeatureExtractor, x: Tensor) -> torch.device:
    weight = next(iter(extractor.parameters()), None)
    return x.device if weight is None else weight.device


def _check_samples(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{name} samples have shape {tuple(x.shape)}, expected (B, {', '.join(map(str, shape))})")
    bad = int((~torch.isfinite(x.flatten(1))).any(1).sum()) if len(x) else 0
    if bad:
        raise ValueError(f"{bad} of {len(x)} {name} samples are not finite, expected all of them to be")


def _check_positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} = {value}, expected at least 1")

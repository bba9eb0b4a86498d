"""Measuring generated samples against a data set, batch by batch at constant memory.

extractor = SmallClassifier().build(dataset, device)
reference = build_reference(dataset, extractor)
measure = Measure(extractor, reference)
for x, labels in generated:
    measure.update(x, labels)
print(measure.result())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from facm.evaluation.features import (
    FeatureExtractor,
    Quantise,
    as_stored,
    check_positive,
    check_quantise,
    check_samples,
    checked_features,
    device_of,
    features_of,
)
from facm.evaluation.frechet import Moments, frechet_distance
from facm.evaluation.inception_score import SPLITS, InceptionScore
from facm.evaluation.kid import KernelDistance
from facm.evaluation.precision_recall import precision_recall
from facm.evaluation.reference import KEEP, Reference

_NEIGHBOURS = 3
PUBLISHED_N = 50_000


@dataclass(frozen=True)
class Measurement:
    """The result, with what it is relative to.

    frechet_distance: squared Frechet distance in the features named by ``features``, >= 0, lower is better; None where
        only the CLIP score is measured.
    precision: in [0, 1], None with three samples or fewer on a side.
    recall: in [0, 1], None with three samples or fewer on a side.
    accuracy: share of samples classified as the label they were generated for, None where it is not measured.
    n: generated samples.
    n_reference: real samples, None where a file of statistics does not say.
    features: identity of the feature network, None without one.
    reference: fingerprint of the real features, None without them.
    inception_score: mean over ``splits``, None where it is not measured.
    inception_score_std: standard deviation over ``splits``.
    splits: parts of the samples that the Inception score is taken of.
    kid: mean over ``kid_subsets``, None where it is not measured or fewer than ``kid_subset_size`` samples were kept.
    kid_std: standard deviation over ``kid_subsets``.
    kid_subsets: random subsets of the kept samples.
    kid_subset_size: samples in each.
    keep: of so many generated samples, at most, the features were kept for precision, recall and KID.
    kept: of so many they were.
    kept_reference: real samples with features for precision, recall and KID.
    features_of_reference: "recorded" with the statistics, or "assumed" to be ``features``.
    metric_names: what literature calls these numbers, where the features have such names.
    comparable_to_published: whether, as far as can be known here, the Frechet distance is what papers call FID-50k.
    not_comparable: why it is not.
    clip_score: mean over the samples of 100 times the cosine between image and prompt, None where it is not measured.
    clip: identity of the CLIP model.
    """

    frechet_distance: float | None
    precision: float | None
    recall: float | None
    accuracy: float | None
    n: int
    n_reference: int | None
    features: str | None
    reference: str | None
    inception_score: float | None = None
    inception_score_std: float | None = None
    splits: int | None = None
    kid: float | None = None
    kid_std: float | None = None
    kid_subsets: int | None = None
    kid_subset_size: int | None = None
    keep: int = KEEP
    kept: int = 0
    kept_reference: int = 0
    features_of_reference: str = "recorded"
    metric_names: Mapping[str, str] = field(default_factory=dict)
    comparable_to_published: bool = False
    not_comparable: tuple[str, ...] = ()
    clip_score: float | None = None
    clip: str | None = None


@dataclass(frozen=True)
class MeasureSettings:
    """How samples are measured.

    keep: features of so many samples are kept for precision, recall and kernel distance.
    quantise: how generated images get their 8 bits, see :func:`facm.evaluation.quantise`.
    kernel: the kernel distance; None: KID's where the extractor has a name for it, else none.
    small_n: accept fewer samples than features under a published metric's name, see :func:`check_enough`.
    """

    keep: int = KEEP
    quantise: Quantise = "round"
    kernel: KernelDistance | None = None
    small_n: bool = False

    def __post_init__(self) -> None:
        check_positive(keep=self.keep)
        check_quantise(self.quantise)


_DEFAULT = MeasureSettings()


class Measure:
    """Accumulates generated batches; ``result()`` may be called at any time and again later.

    Memory is constant: the moments (F, F), class probabilities, and features of the first ``settings.keep`` samples
    fed, for precision, recall and kernel distance: so feed them in random order of class.

    accuracy: whether to compare ``extractor.classify`` with the labels; None means where the extractor classifies,
        False is for unconditional generators.
    n: samples that will be fed, which the Inception score must know from the start; None: it is not measured.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Reference,
        *,
        accuracy: bool | None = None,
        n: int | None = None,
        settings: MeasureSettings = _DEFAULT,
    ) -> None:
        if extractor.identity != reference.features:
            raise ValueError(f"extractor is {extractor.identity!r}, expected the reference's {reference.features!r}")
        if accuracy and extractor.num_classes is None:
            raise ValueError(f"accuracy=True, expected False or None: {extractor.identity!r} does not classify")
        if n is not None and not settings.small_n:
            check_enough(n, extractor, reference)
        self._extractor, self._reference, self._settings = extractor, reference, settings
        self._accuracy = extractor.num_classes is not None if accuracy is None else accuracy
        kernel = settings.kernel
        self._kernel = KernelDistance() if kernel is None and "kid" in _names(extractor) else kernel
        self._with_logits: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        self._score: InceptionScore | None = None
        if n is not None and n >= SPLITS and hasattr(extractor, "features_and_logits"):
            self._with_logits, self._score = extractor.features_and_logits, InceptionScore(n)
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

    def extract(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What :meth:`add` takes in of a batch, a function of the batch alone: features (B, F) on the CPU, how many
        samples are classified right (), and logits (B, K') for the Inception score; None where not asked for. See
        :meth:`update`."""
        check_samples("generated", x, self._reference.shape)
        if self._accuracy:
            labels = self._checked_labels(labels, len(x))
        x = as_stored(x, self._settings.quantise)
        logits = None
        if self._with_logits is None:
            found = features_of(self._extractor, x)
        else:
            with torch.no_grad():
                found, logits = self._with_logits(x.to(device_of(self._extractor, x)))
            found, logits = checked_features(self._extractor, found, len(x)), logits.float().cpu()
        correct = None
        if self._accuracy and labels is not None:
            with torch.no_grad():
                predicted = self._extractor.classify(x.to(device_of(self._extractor, x))).argmax(1)
            correct = (predicted.cpu() == labels.cpu()).sum()
        return found, correct, logits

    def add(self, found: Tensor, correct: Tensor | None = None, logits: Tensor | None = None) -> None:
        """Take in a batch from :meth:`extract`."""
        if self._score is not None and logits is not None:
            self._score.add(logits)
        self._correct += 0 if correct is None else int(correct)
        self._moments.add(found)
        if self._kept < self._settings.keep:
            self._rows.append(found[: self._settings.keep - self._kept].clone())
            self._kept += len(self._rows[-1])

    def result(self) -> Measurement:
        """Raises ValueError below two samples, for too few (see :func:`check_enough`), and where the Inception score
        misses some of the n samples."""
        n, reference = self._moments.n, self._reference
        if n < 2:
            raise ValueError(f"n = {n} generated samples, expected at least 2")
        if not self._settings.small_n:
            check_enough(n, self._extractor, reference)
        against = _against_comparing(n, self._extractor, reference, self._settings.quantise)
        return Measurement(
            frechet_distance=frechet_distance(
                self._moments.mean, self._moments.covariance(), reference.mean, reference.covariance
            ),
            accuracy=self._correct / n if self._accuracy else None,
            n=n,
            n_reference=reference.n,
            features=reference.features,
            reference=reference.fingerprint,
            **self._inception_score(),
            **self._of_kept_rows(),
            keep=self._settings.keep,
            kept=self._kept,
            kept_reference=len(reference.rows),
            features_of_reference="assumed" if reference.assumed else "recorded",
            metric_names=_named(_names(self._extractor), n, not against),
            comparable_to_published=not against,
            not_comparable=against,
        )

    def _inception_score(self) -> dict[str, Any]:
        if self._score is None:
            return {}
        mean, std = self._score.result()
        return {"inception_score": mean, "inception_score_std": std, "splits": self._score.splits}

    def _of_kept_rows(self) -> dict[str, Any]:
        """Precision, recall and kernel distance, as far as enough samples were kept on both sides."""
        generated, real, kernel = torch.cat(self._rows), self._reference.rows, self._kernel
        fewest = min(len(generated), len(real))
        found: dict[str, Any] = {"precision": None, "recall": None}
        if fewest > _NEIGHBOURS:
            found["precision"], found["recall"] = precision_recall(real, generated, _NEIGHBOURS)
        if kernel is not None and fewest >= kernel.subset_size:
            found["kid"], found["kid_std"] = kernel(generated, real)
            found |= {"kid_subsets": kernel.subsets, "kid_subset_size": kernel.subset_size}
        return found

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


def check_enough(n: int, extractor: FeatureExtractor, reference: Reference) -> None:
    """Raises ValueError for n <= F samples where the number could be taken for a published one: features that have a
    name (FID's), or statistics from a file. The covariance of so few samples is singular whatever they are."""
    if n <= extractor.num_features and (_names(extractor) or reference.file is not None):
        raise ValueError(
            f"n = {n} samples for {extractor.num_features} features: their covariance is singular and the distance "
            f"means nothing; expected more than {extractor.num_features} (papers: 50,000), or say small_n=True"
        )


def _names(extractor: FeatureExtractor) -> Mapping[str, str]:
    """What literature calls the numbers in these features: an attribute that an extractor may have."""
    names: Any = getattr(extractor, "metric_names", {})
    return names


def _named(names: Mapping[str, str], n: int, comparable: bool) -> dict[str, str]:
    named = dict(names)
    if name := named.get("frechet_distance"):
        named["frechet_distance"] = f"{name}-50k" if comparable else f"{name} (n = {n:,}, not comparable to published)"
    return named


def _against_comparing(n: int, extractor: FeatureExtractor, reference: Reference, how: Quantise) -> tuple[str, ...]:
    """Why the Frechet distance is not FID-50k."""
    if _names(extractor).get("frechet_distance") != "FID":
        return (f"the features {extractor.identity!r} are not those of FID",)
    reasons = []
    if not getattr(extractor, "published", False):
        reasons.append("the Inception weights are not the published file")
    if not (reference.file is not None and reference.assumed):
        reasons.append("the reference statistics are not a published file, they were computed by this package")
    if n != PUBLISHED_N:
        reasons.append(f"n = {n}, papers take {PUBLISHED_N}")
    if how != "round":
        reasons.append("generated images were truncated to 8 bits, not rounded")
    return tuple(reasons)

"""What samples are measured with and against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from facm.core.component import check_fulfils
from facm.core.types import Dataset
from facm.data.frames import Frames, is_clip
from facm.distributed.collectives import by_first, check_same, meet
from facm.distributed.process_group import ALONE, World
from facm.evaluation.classifier import SmallClassifier
from facm.evaluation.clip import CLIP, CLIPNetwork
from facm.evaluation.features import (
    FeatureExtractor,
    Features,
    Identity,
    PretrainedFeatures,
    Quantise,
    check_positive,
    check_quantise,
)
from facm.evaluation.metrics import Measure, MeasureSettings
from facm.evaluation.reference import KEEP, Reference, build_reference, load_reference


@dataclass(frozen=True)
class Evaluator:
    """A feature network, the real data's statistics in it, and how samples are compared with them.

    extractor: the feature network.
    reference: the real data in its features.
    data: the real data; None with statistics from a file.
    device: where samples are drawn.
    world: the ranks that share the samples.
    keep: features of so many generated samples are kept for precision, recall and KID.
    quantise: how generated images get their 8 bits, "round" or "truncate".
    small_n: accept fewer samples than features under a published metric's name.
    progress: called on the first rank as (samples measured, n) after every batch.
    clip: what measures the CLIP score as well, for data sets with prompts.
    """

    extractor: FeatureExtractor
    reference: Reference
    data: Dataset | None = None
    device: torch.device = torch.device("cpu")
    world: World = ALONE
    keep: int = KEEP
    quantise: Quantise = "round"
    small_n: bool = False
    progress: Callable[[int, int], None] | None = None
    clip: CLIPNetwork | None = None

    def __post_init__(self) -> None:
        check_positive(keep=self.keep)
        check_quantise(self.quantise)

    @property
    def dataset(self) -> Dataset:
        """The data set. Raises ValueError where there is none."""
        if self.data is None:
            raise ValueError(f"the evaluator has statistics from {self.reference.file} and no data set")
        return self.data

    @property
    def classes_are_the_data_sets(self) -> bool:
        """Whether the classes that the extractor tells apart are those that samples are generated for."""
        return self.data is not None and self.data.num_classes is not None

    def measure(self, n: int, accuracy: bool | None = None) -> Measure:
        """An empty measurement of n samples; accuracy: as for :class:`Measure`."""
        settings = MeasureSettings(keep=self.keep, quantise=self.quantise, small_n=self.small_n)
        return Measure(self.extractor, self.reference, accuracy=accuracy, n=n, settings=settings)


@dataclass(frozen=True)
class CLIPEvaluator:
    """Measures the CLIP score alone: nothing real is needed.

    clip: the CLIP model.
    device, world, quantise, progress: as for :class:`Evaluator`.
    """

    clip: CLIPNetwork
    device: torch.device = torch.device("cpu")
    world: World = ALONE
    quantise: Quantise = "round"
    progress: Callable[[int, int], None] | None = None
    reference: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_quantise(self.quantise)


def build_clip(path: Path, world: World = ALONE, device: torch.device | None = None) -> CLIPNetwork:
    """The CLIP model in a local folder, the same on every rank; device: None: the rank's.

    Raises ValueError as :meth:`CLIP.build` does, and where the ranks find different models."""
    clip = CLIP(str(path)).build(device or world.device)
    check_same(world, "the CLIP model", clip.identity)
    return clip


def build_evaluator(
    dataset: Dataset,
    device: torch.device,
    features: Features | None = None,
    world: World = ALONE,
    frames_per_clip: int | None = None,
) -> Evaluator:
    """Measure against all samples of ``dataset``, of clips against all their frames. Other settings:
    ``dataclasses.replace(evaluator, ...)``.

    frames_per_clip: against so many of each, as :class:`~facm.evaluation.samples.Sampling` draws them.
    features: the feature network; None: a small classifier trained on the data where it has labelled images, else the
    samples themselves. The first rank makes it; the others find the classifier in the cache.

    Raises ValueError where the ranks end up with different features."""
    if is_clip(dataset.shape):
        dataset = Frames(dataset, frames_per_clip)
    if features is None:
        classifies = dataset.num_classes is not None and len(dataset.shape) == 3
        features = SmallClassifier() if classifies else Identity()
    extractor = _built(world, features, dataset, device)
    reference = by_first(world, lambda: build_reference(dataset, extractor))
    return Evaluator(extractor, reference, dataset, device, world)


def evaluator_from_statistics(
    path: Path,
    features: PretrainedFeatures,
    device: torch.device,
    *,
    images: bool = False,
    dataset: Dataset | None = None,
    world: World = ALONE,
) -> Evaluator:
    """Measure against statistics from a file, as papers publish them for FID: no data set is needed, nor read.

    images: see :func:`load_reference`. dataset: tells the shape of a sample, and whether labels can be checked.

    Raises ValueError as :func:`load_reference` does, and where the ranks end up with different features."""
    extractor = _built(world, features, dataset, device)
    reference = by_first(world, lambda: load_reference(path, extractor, images=images))
    return Evaluator(extractor, reference, dataset, device, world)


def _built(world: World, features: Any, dataset: Dataset | None, device: torch.device) -> FeatureExtractor:
    """The first rank goes first: what it downloads or trains, the others find."""
    if not world.first:
        meet(world)
    extractor: FeatureExtractor = features.build(dataset, device)
    check_fulfils(extractor, FeatureExtractor, features, may_lack=("classify",))  # asked only where it has classes
    if world.first:
        meet(world)
    check_same(world, "the feature network (is the cache, FACM_CACHE, shared by all machines?)", extractor.identity)
    return extractor

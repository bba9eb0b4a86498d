"""What samples are measured with and against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from facm.core.types import Dataset
from facm.distributed.collectives import by_first, check_same, meet
from facm.distributed.process_group import ALONE, World
from facm.evaluation.classifier import SmallClassifier
from facm.evaluation.features import FeatureExtractor, Features, Identity, PretrainedFeatures
from facm.evaluation.reference import Reference, build_reference, load_reference


@dataclass(frozen=True)
class Judge:
    """A feature extractor and the real data's statistics in it. data: None with statistics from a file."""

    data: Dataset | None
    extractor: FeatureExtractor
    reference: Reference

    @property
    def dataset(self) -> Dataset:
        """The data set. Raises ValueError where there is none."""
        if self.data is None:
            raise ValueError(f"the judge has statistics from {self.reference.file} and no data set")
        return self.data


def judge(dataset: Dataset, device: torch.device, features: Features | None = None, world: World = ALONE) -> Judge:
    """features: the plug; None: a small classifier trained on the data where it has labelled images, else the samples
    themselves. The first rank makes both; the others find the classifier in the cache.

    Raises ValueError where the ranks end up with different features."""
    if features is None:
        classifies = dataset.num_classes is not None and len(dataset.shape) == 3
        features = SmallClassifier() if classifies else Identity()
    chosen = features
    extractor = _built(world, lambda: chosen.build(dataset, device))
    return Judge(dataset, extractor, by_first(world, lambda: build_reference(dataset, extractor)))


def judge_by_file(
    path: Path,
    features: PretrainedFeatures,
    device: torch.device,
    *,
    images: bool = False,
    dataset: Dataset | None = None,
    world: World = ALONE,
) -> Judge:
    """Statistics from a file, as papers publish them for FID: no data set is needed, nor read.

    images: see :func:`load_reference`. dataset: says the shape of a sample, and whether labels can be checked.

    Raises ValueError as :func:`load_reference` does, and where the ranks end up with different features."""
    extractor = _built(world, lambda: features.build(dataset, device))
    return Judge(dataset, extractor, by_first(world, lambda: load_reference(path, extractor, images=images)))


def _built(world: World, build: Callable[[], FeatureExtractor]) -> FeatureExtractor:
    """The first rank goes first: what it downloads or trains, the others find."""
    if not world.first:
        meet(world)
    extractor = build()
    if world.first:
        meet(world)
    check_same(world, "the feature network (is the cache, FACM_CACHE, shared by all machines?)", extractor.identity)
    return extractor

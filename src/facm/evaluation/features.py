"""The plug for feature networks: what a Frechet distance is measured in.

A distance is a number of the data *and* of the features, so a feature network carries an ``identity`` that goes into
the record of every result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from facm.core.types import Batch, Dataset


@runtime_checkable
class FeatureExtractor(Protocol):
    """An ``nn.Module``, pure (same x, same output, in train and eval mode), on the device of its parameters.

    ``num_features``: F. ``identity``: name and hash of the weights, see :func:`identity_of`. ``num_classes``: K, or
    None where it does not classify.

    It may also have: ``features_and_logits(x)`` -> features (B, F), logits (B, K'), for the Inception score;
    ``metric_names``, what literature calls the numbers in its features, {"frechet_distance": "FID", "kid": "KID",
    "inception_score": "IS"} for Inception's.
    """

    num_features: int
    identity: str
    num_classes: int | None

    def __call__(self, x: Tensor, /) -> Tensor:
        """x (B, ...), images in [-1, 1] -> features (B, F) float32."""
        ...

    def classify(self, x: Tensor, /) -> Tensor:
        """x (B, ...), images in [-1, 1] -> logits (B, K). Called only where ``num_classes`` is not None."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


@runtime_checkable
class Features(Protocol):
    """A feature network's configuration: frozen, and built for one data set."""

    def build(self, dataset: Dataset, device: torch.device | str) -> FeatureExtractor: ...


@runtime_checkable
class PretrainedFeatures(Protocol):
    """A feature network's configuration that needs no data set: its weights are in a file."""

    def build(self, dataset: Dataset | None, device: torch.device | str) -> FeatureExtractor: ...


@dataclass(frozen=True)
class Identity:
    """The flattened samples themselves; for low-dimensional data such as 2-D toys."""

    def build(self, dataset: Dataset, device: torch.device | str = "cpu") -> FeatureExtractor:
        return _Flatten(math.prod(dataset.shape))


class _Flatten(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes: int | None = None
        self.identity = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).float()

    def classify(self, x: Tensor) -> Tensor:
        raise TypeError("features 'identity' do not classify (num_classes is None)")


def read_blocks(dataset: Dataset, indices: np.ndarray, block: int) -> Iterator[Batch]:
    """Samples ``indices`` (N,) int64 of the data set in that order, at most ``block`` at a time.

    Raises ValueError where the data set returns another shape than it declares.
    """
    for start in range(0, len(indices), block):
        chosen = indices[start : start + block]
        batch = dataset.read(chosen)
        found, expected = tuple(batch.x_1.shape), (len(chosen), *dataset.shape)
        if found != expected:
            raise ValueError(f"the data set returned samples of shape {found}, expected {expected}")
        yield batch

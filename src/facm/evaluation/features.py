"""The plug for feature networks: what a Frechet distance is measured in.

A distance is a number of the data *and* of the features, so a feature network carries an ``identity`` that goes into
the record of every result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

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


Quantise = Literal["round", "truncate"]


class NonFiniteSamplesError(ValueError):
    """There is nothing to measure: a network's samples are NaN or infinite."""


def quantise(x: Tensor, how: Quantise = "round") -> Tensor:
    """Images as they would be stored: x (B, C, H, W) -> one of the 256 levels of [-1, 1], same shape, float32.

    Values outside [-1, 1] are clamped. how: "round" to the nearest level; "truncate" to the one below, as programs do
    that write ``((x + 1) * 127.5)`` into bytes: it darkens every image by half a level, and is here to get their
    numbers again.
    """
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected images (B, C, H, W)")
    check_quantise(how)
    levels = (x.float().clamp(-1, 1) + 1) * 127.5
    return (levels.round() if how == "round" else levels.floor()) / 127.5 - 1


def check_quantise(how: str) -> None:
    """Raises ValueError unless it is one of the two."""
    if how not in ("round", "truncate"):
        raise ValueError(f"quantise = {how!r}, expected 'round' or 'truncate'")


def as_stored(x: Tensor, how: Quantise = "round") -> Tensor:
    """Images quantised, other samples as they are."""
    return quantise(x, how) if x.ndim == 4 else x


def features_of(extractor: FeatureExtractor, x: Tensor) -> Tensor:
    """Samples (B, ...) -> features (B, F) float32 on the CPU."""
    with torch.no_grad():
        return checked_features(extractor, extractor(x.to(device_of(extractor, x))), len(x))


def checked_features(extractor: FeatureExtractor, found: Tensor, n: int) -> Tensor:
    """What an extractor returned, float32 on the CPU. Raises ValueError unless it is (n, F) and finite."""
    if found.shape != (n, extractor.num_features):
        raise ValueError(
            f"{extractor.identity!r} returned {tuple(found.shape)}, expected {(n, extractor.num_features)}"
        )
    found = found.float().cpu().contiguous()
    if not torch.isfinite(found).all():
        raise ValueError(f"{extractor.identity!r} returned features that are not finite for finite samples")
    return found


def real_features(extractor: FeatureExtractor, x: Tensor) -> Tensor:
    """Real samples (B, ...) -> features (B, F). Images are rounded to 8 bits, whatever is done to the generated ones:
    they come from files that hold bytes. Raises ValueError for images outside [-1, 1]."""
    check_samples("real", x, tuple(x.shape[1:]))
    if x.ndim == 4 and float(x.abs().max()) > 1 + 1e-4:  # clamping would hide that these are latents, or bytes
        raise ValueError(f"real images run over [{float(x.min()):g}, {float(x.max()):g}], expected [-1, 1]")
    return features_of(extractor, as_stored(x))


def check_samples(name: str, x: Tensor, shape: tuple[int, ...] | None) -> None:
    """Raises ValueError for another shape than (B, *shape), None being any images, and for samples not finite."""
    if shape is None and x.ndim != 4:
        raise ValueError(f"{name} samples have shape {tuple(x.shape)}, expected images (B, C, H, W)")
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise ValueError(f"{name} samples have shape {tuple(x.shape)}, expected (B, {', '.join(map(str, shape))})")
    bad = int((~torch.isfinite(x.flatten(1))).any(1).sum()) if len(x) else 0
    if bad:
        raise NonFiniteSamplesError(f"{bad} of {len(x)} {name} samples are not finite, expected all of them to be")


def check_positive(**options: int) -> None:
    """Raises ValueError for an option below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} = {value}, expected at least 1")


def device_of(extractor: FeatureExtractor, x: Tensor) -> torch.device:
    """Where the extractor's weights are; where x is, if it has none."""
    weight = next(iter(extractor.parameters()), None)
    return x.device if weight is None else weight.device

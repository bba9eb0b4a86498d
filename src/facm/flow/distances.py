"""Distances between a prediction and its target: (B, ...), (B, ...) -> (B,), each a mean over the sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from torch import Tensor

from facm.core.component import Positive, Range, component
from facm.core.tensors import check_same_shape

Exponent = Annotated[float, Range("[0, 4]")]
"""The exponent of a weight 1 / (e + c)^p."""
Constant = Annotated[float, Range("[1e-8, 1e8]")]
"""The constant of a weight 1 / (e + c)^p, which keeps it finite in float32 for every p."""

MIN_CHANNELS_FOR_COSINE = 4  # below, the cosine at one position says little: with 1 channel it is only a sign


@runtime_checkable
class Distance(Protocol):
    """A distance of prediction and target, (B, ...) twice -> (B,)."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor: ...


def mean_square(prediction: Tensor, target: Tensor) -> Tensor:
    """e = mean((prediction - target)^2) over everything but the batch: the paper's ||.||^2 divided by the dimension,
    which is what balances the two losses of Eq. 8 at weight 1:1."""
    check_same_shape(prediction=prediction, target=target)
    return (prediction - target).square().flatten(1).mean(1)


def cosine_distance(prediction: Tensor, target: Tensor, flat: bool) -> Tensor:
    """1 - cos(prediction, target): over the channel axis at each position and then averaged, or ``flat`` over the
    whole sample (Eq. 10)."""
    check_same_shape(prediction=prediction, target=target)
    if flat:
        prediction, target = prediction.flatten(1), target.flatten(1)
    return (1 - torch.nn.functional.cosine_similarity(prediction, target, dim=1)).reshape(len(target), -1).mean(1)


@dataclass(frozen=True)
class L2(Distance):
    """mean((prediction - target)^2)."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return mean_square(prediction, target)


@dataclass(frozen=True)
@component
class L2Cosine(Distance):
    """mean square + (1 - cos), the anchor's distance (Eq. 10)."""

    flat: bool | None = None
    """Cosine over the whole sample (Eq. 10); False: over the channels at each position; None: False from 4 channels."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        flat = target.shape[1] < MIN_CHANNELS_FOR_COSINE if self.flat is None else self.flat
        return mean_square(prediction, target) + cosine_distance(prediction, target, flat)


@dataclass(frozen=True)
@component
class NormL2(Distance):
    """e / sg((e + c)^p), e = mean square (Eq. 18 with p = 0.5): bounded gradients for outliers.

    The weight is under stop-gradient.
    """

    p: Exponent = 0.5
    """Exponent of the weight, within [0, 4]; 0 is the plain mean square, 1 is MeanFlow's."""
    c: Constant = 1e-3
    """Constant of the weight, above 0, in units of the mean square."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        e = mean_square(prediction, target)
        return e / (e.detach() + self.c) ** self.p


@dataclass(frozen=True)
@component
class PseudoHuber(Distance):
    """sqrt(e + c^2) - c, e = mean square (arXiv 2310.14189): quadratic below c, the norm above.

    The paper has the squared norm and 0.00054 sqrt(D), which is this times sqrt(D).
    """

    c: Constant = 0.00054
    """Where the square becomes the norm, above 0, in units of the root mean square."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (mean_square(prediction, target) + self.c**2).sqrt() - self.c


@dataclass(frozen=True)
@component
class Scaled(Distance):
    """Another distance times a weight: FACM(anchor=Scaled(L2Cosine(), 0.1)) is Eq. 8 with the anchor weighted 0.1."""

    distance: Distance
    """The distance that is scaled."""
    weight: Positive
    """Its factor, above 0; FACM without its anchor is ContinuousCM."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.weight * self.distance(prediction, target)

"""The sample space of a published network, without the data that it was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from facm.core.component import Count, Positive, Range, component, refused
from facm.core.types import Batch, Data
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.latents.statistics import Statistics, load_statistics, scaled

MOST_NUMBERS = 2**31
"""Numbers in one sample."""


@dataclass(frozen=True)
@component
class LatentSpace(Data):
    """A data set without samples: their shape, classes and decoder, all that sampling from a network needs.

    Raises ComponentError where both statistics and scale are given.
    """

    shape: Annotated[tuple[Count, ...], Range("[1, 16]")]
    """Shape (C, H, W) of a sample."""
    num_classes: Annotated[int, Range("[1, 16777216]")] | None = None
    """Number of classes; None for an unconditional network."""
    autoencoder: AutoencoderConfig | None = None
    """Autoencoder that decodes the samples; None where the samples are images."""
    statistics: Statistics | str | None = None
    """Statistics of the training latents, or the path of their latents_stats.pt; None: they were not standardised."""
    scale: Positive | None = None
    """Number that the training latents were multiplied by, instead of statistics; None: not scaled."""
    plain: bool = False
    """Whether the samples are no latents, whatever their shape."""

    def __post_init__(self) -> None:
        if (self.statistics is not None) and (self.scale is not None):
            raise refused(self, "scale", f"None with statistics = {self.statistics!r}")
        if math.prod(self.shape) > MOST_NUMBERS:
            raise refused(self, "shape", f"at most {MOST_NUMBERS} numbers")

    def open(self) -> OpenSamples:
        return OpenSamples(self) if self.plain else OpenSpace(self)


class OpenSamples:
    """A data set without samples."""

    flip = False

    def __init__(self, config: LatentSpace) -> None:
        self.config, self.shape, self.num_classes = config, config.shape, config.num_classes
        self.autoencoder = config.autoencoder
        self.name = f"LatentSpace{config.shape}"

    def __len__(self) -> int:
        return 0

    def read(self, indices: np.ndarray) -> Batch:
        raise ValueError(f"{self.name} is a space without samples: training needs data, such as Latents(folder)")


class OpenSpace(OpenSamples):
    """The same of latents."""

    @property
    def statistics(self) -> Statistics:
        config = self.config
        if config.statistics is None:
            return scaled(config.shape[0], 1.0 if config.scale is None else config.scale)
        given = config.statistics
        found = load_statistics(Path(given).expanduser()) if isinstance(given, str) else given
        if found.channels != config.shape[0]:
            raise ValueError(f"{given} is of {found.channels} channels, the network's latents have {config.shape[0]}")
        return found

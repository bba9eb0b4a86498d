"""The sample space of a published network, without the data that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facm.core.types import Batch
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.latents.statistics import Statistics, load_statistics, scaled


@dataclass(frozen=True)
class LatentSpace:
    """A data set without samples: their shape, classes and decoder, all that sampling from a network needs.

    Raises ValueError where both statistics and scale are given.
    """

    shape: tuple[int, ...]
    """Shape (C, H, W) of a sample."""
    num_classes: int | None = None
    """Number of classes; None for an unconditional network."""
    autoencoder: AutoencoderConfig | None = None
    """Autoencoder that decodes the samples; None where the samples are images."""
    statistics: Statistics | str | None = None
    """Statistics of the training latents, or the path of their latents_stats.pt; None: they were not standardised."""
    scale: float | None = None
    """Number that the training latents were multiplied by, instead of statistics; None: not scaled."""

    def __post_init__(self) -> None:
        if (self.statistics is not None) and (self.scale is not None):
            raise ValueError(f"LatentSpace: statistics = {self.statistics!r} and scale = {self.scale}, expected one")

    def open(self) -> OpenSpace:
        return OpenSpace(self)


class OpenSpace:
    """A data set without samples."""

    flip = False

    def __init__(self, config: LatentSpace) -> None:
        self.config, self.shape, self.num_classes = config, config.shape, config.num_classes
        self.autoencoder = config.autoencoder
        self.name = f"LatentSpace{config.shape}"

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

    def __len__(self) -> int:
        return 0

    def read(self, indices: np.ndarray) -> Batch:
        raise ValueError(f"{self.name} is a space without samples: training needs data, such as Latents(folder)")

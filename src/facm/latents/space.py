"""The space that a published network lives in, without the data it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facm.core.types import Batch
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.latents.statistics import Statistics, load_statistics, scaled


@dataclass(frozen=True)
class LatentSpace:
    """shape (C, H, W) of a latent; num_classes of the labels, or None.

    autoencoder: what makes images of latents; None where the samples are images themselves.
    statistics: of what the network was trained on, or the latents_stats.pt with them; or scale, where latents were only
    scaled; neither: they are as the autoencoder makes them.
    """

    shape: tuple[int, ...]
    num_classes: int | None = None
    autoencoder: AutoencoderConfig | None = None
    statistics: Statistics | str | None = None
    scale: float | None = None

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

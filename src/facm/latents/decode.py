"""From what a network makes to images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from facm.core.component import check_fulfils
from facm.core.serialize import from_json, types_in
from facm.latents.autoencoders.types import Autoencoder, AutoencoderConfig
from facm.latents.statistics import Statistics


class ImageDecoder(Protocol):
    """What makes images (B, 3, H, W) in [-1, 1] of samples."""

    @property
    def identity(self) -> str:
        """Which weights, for the record."""
        ...

    @property
    def factor(self) -> int:
        """Pixels of an image along each side for one of the sample's."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class DecodesItself(Protocol):
    """An opened data set that brings what makes images of its samples."""

    def decoder(self, device: torch.device) -> ImageDecoder:
        """Raises ValueError where it cannot be loaded, or is not the one that the data set was made with."""
        ...


@dataclass(frozen=True, eq=False)
class Decoder(ImageDecoder):
    """Standardised latents (B, C, h, w) -> images (B, 3, H, W) in [-1, 1], clamped.

    autoencoder: its decoder makes the images.
    statistics: of the latents, which are standardised with them.
    block: latents decoded at once, for a decoder takes much more memory than the network.
    """

    autoencoder: Autoencoder
    statistics: Statistics
    block: int = 16

    @property
    def identity(self) -> str:
        """Which weights and which statistics, for the record."""
        return f"{self.autoencoder.identity}, statistics {self.statistics.fingerprint}"

    @property
    def factor(self) -> int:
        """The autoencoder's."""
        return self.autoencoder.factor

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        parts = [self.autoencoder.decode(self.statistics.restore(part.float())) for part in x.split(self.block)]
        return torch.cat(parts).clamp(-1, 1)


def decoder_of(dataset: Any, device: torch.device, autoencoder: AutoencoderConfig | None = None) -> ImageDecoder | None:
    """What makes images of a data set's samples; None for a data set of images, or of anything else.

    autoencoder: in place of the data set's own, which is the one that its configuration says, or that prepared it.
    Raises ValueError where it cannot be loaded, or latents and autoencoder do not fit together.
    """
    if isinstance(dataset, DecodesItself):
        if autoencoder is not None:
            raise ValueError(f"autoencoder = {autoencoder} for {dataset}, which brings its own; expected none")
        return dataset.decoder(device)
    statistics: Statistics | None = getattr(dataset, "statistics", None)
    config = autoencoder or getattr(dataset, "autoencoder", None)
    if config is None and (recorded := getattr(dataset, "encoded_by", None)) is not None:
        config = _recorded(recorded)
    if config is None:
        return None
    if statistics is None:
        raise ValueError(f"autoencoder = {config} for a data set without latents, expected none")
    built = config.build()
    check_fulfils(built, Autoencoder, config)
    if built.channels != dataset.shape[0]:
        raise ValueError(
            f"autoencoder = {config} decodes {built.channels} channels, the latents have {dataset.shape[0]}"
        )
    made_by = getattr(dataset, "encoder_identity", None)
    if made_by is not None and built.identity != made_by:
        raise ValueError(
            f"autoencoder = {config} is {built.identity}, but {made_by} made the latents: expected that one"
        )
    return Decoder(built.to(device), statistics)


def _recorded(said: Any) -> AutoencoderConfig:
    """The autoencoder that a data set names. One that is not this package's would be imported from wherever the data
    set says, which may come from anywhere."""
    if not isinstance(said, dict) or not all(name.startswith("facm.latents:") for name in types_in(said)):
        raise ValueError(
            f"the latents were made by {said!r}, which is none of facm.latents: expected autoencoder, one that makes "
            "images of them, or Latents(..., autoencoder=...) in the recipe"
        )
    config = from_json(said)
    if not isinstance(config, AutoencoderConfig):
        raise ValueError(f"the latents were made by {said!r}, expected an autoencoder's configuration")
    return config

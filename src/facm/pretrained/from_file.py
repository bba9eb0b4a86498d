"""A published file as a run's teacher, or as the weights that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from facm.core.component import Range, component
from facm.core.objective import NetworkInterface
from facm.core.state_dict import load_strictly
from facm.flow.conditions import Labels, Unconditional
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.pretrained.latent_space import space_of
from facm.pretrained.reader import Published, open_published
from facm.pretrained.trained import FromRun, Trained
from facm.runs.config import Pretrained


def built(published: Published) -> torch.nn.Module:
    """Its network with its weights, in eval mode and without gradients."""
    network = published.network.build()
    load_strictly(network, published.state, str(published.path))
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
@component
class FromFile(Pretrained):
    """The network of a published file, or of one that ``facm weights export`` or ``import`` wrote.

    path: the file.
    family: whose network it is, where its content does not tell; see :func:`facm.pretrained.open_published`.
    weights: which part of a training checkpoint.
    heads: attention heads, where the size is not a published one.
    """

    path: str
    family: str | None = None
    weights: str | None = None
    heads: Annotated[int, Range("[1, 65536]")] | None = None

    def load(self) -> torch.nn.Module:
        """In eval mode and without gradients. Raises ValueError where the file does not tell or fit."""
        return built(open_published(Path(self.path), self.family, self.weights, self.heads))


def load_file(
    path: Path | str,
    family: str | None = None,
    weights: str | None = None,
    heads: int | None = None,
    *,
    learns_shortcut: bool | None = None,
    autoencoder: AutoencoderConfig | None = None,
    statistics: Path | None = None,
    scale: float | None = None,
) -> Trained:
    """The network in a published, exported or imported file, and how it is called.

    family, weights, heads: see :func:`facm.pretrained.open_published`. learns_shortcut: whether it learned the
    shortcut, where the file does not say. autoencoder, statistics, scale: of its latents, see
    :func:`facm.pretrained.latent_space.space_of`.
    Raises ValueError for what is missing.
    """
    path = Path(path)
    found = open_published(path, family, weights, heads)
    shortcut = found.learns_shortcut if learns_shortcut is None else learns_shortcut
    if shortcut is None:
        raise ValueError(
            f"{path} does not say whether its network learned the shortcut: expected learns_shortcut = True for "
            "a student, or False for a teacher"
        )
    if found.shape is None:
        raise ValueError(f"{path}: its network {found.network} does not say the shape of a sample (in_channels, size)")
    space = space_of(
        path,
        found.shape,
        found.num_classes,
        found.statistics,
        found.family in SCALED,
        found.shape_is_said,
        autoencoder=autoencoder,
        statistics=statistics,
        scale=scale,
    )
    network = built(found)
    interface = NetworkInterface(
        condition=Labels(found.num_classes) if found.num_classes else Unconditional(),
        task=AuxiliaryTime() if getattr(network, "auxiliary_time", False) else ExpandedInterval(),
        learns_shortcut=shortcut,
        learns_flow=found.learns_flow,
        bounds=found.bounds,
    )
    return Trained(network, found.network, interface, space, path, found.which, None, None, found.sha256)


SCALED = ("sit", "repa", "dit")
"""Families that learnt latents which are scaled and not shifted."""


def pretrained(path: str, family: str | None = None, sigma_rel: float | None = None) -> Pretrained:
    """A teacher at ``path``: a run's folder, or a published file. sigma_rel: which EMA of a run."""
    return FromFile(path, family) if Path(path).is_file() else FromRun(path, sigma_rel)

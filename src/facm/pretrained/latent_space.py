"""The latents of a published network: which autoencoder and which statistics belong to it."""

from __future__ import annotations

from pathlib import Path

from facm.latents.autoencoders.find import autoencoder_at
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.latents.space import LatentSpace
from facm.latents.statistics import Statistics, load_statistics

STATISTICS = "latents_stats.pt"
VAVAE = ("vavae-imagenet256-f16d32-dinov2.pt",)
STABLE_DIFFUSION = ("sd-vae-ft-ema", "sd-vae-ft-mse")
SCALE = 0.18215
"""Factor on Stable Diffusion's latents (Rombach et al. 2022), on which SiT, REPA and DiT were trained."""


def space_of(
    path: Path,
    shape: tuple[int, ...],
    num_classes: int | None,
    own: Statistics | None = None,
    scaled: bool = False,
    plain: bool = False,
    *,
    autoencoder: AutoencoderConfig | None = None,
    statistics: Path | None = None,
    scale: float | None = None,
) -> LatentSpace:
    """The space that the network in the file ``path`` makes samples of ``shape`` (C, H, W) in.

    own: the statistics in the file itself. scaled: it is of a family that learnt Stable Diffusion's latents. plain: its
    samples are no latents, unless something of latents is given. What is not given is looked for beside the file, under
    the names it was published with. Samples of 1 or 3 channels are images themselves. An autoencoder that cannot be
    found is left out: only making images needs it.
    Raises ValueError where there are neither statistics nor a scale, or both are given.
    """
    if plain and autoencoder is None and statistics is None and scale is None:
        return LatentSpace(shape, num_classes, plain=True)
    if shape[0] in (1, 3) and autoencoder is None:
        return LatentSpace(shape, num_classes)
    if statistics is not None and scale is not None:
        raise ValueError(f"statistics = {statistics} with scale = {scale}, expected one of them")
    if autoencoder is None:
        autoencoder = _beside(path, STABLE_DIFFUSION if shape[0] == 4 else VAVAE)
    if statistics is None and scale is None and own is not None:
        return LatentSpace(shape, num_classes, autoencoder, own)
    if statistics is None and scale is None:
        statistics = path.parent / STATISTICS
        if scaled and not (statistics.exists() and load_statistics(statistics).channels == shape[0]):
            statistics, scale = None, SCALE
        elif not statistics.exists():
            raise ValueError(
                f"{path} makes latents of {shape[0]} channels, and there is no {STATISTICS} beside it: expected "
                "statistics, such a file, or scale, a number for latents that were only scaled"
            )
    return LatentSpace(shape, num_classes, autoencoder, None if statistics is None else str(statistics), scale)


def _beside(path: Path, names: tuple[str, ...]) -> AutoencoderConfig | None:
    found = [path.parent / name for name in names if (path.parent / name).exists()]
    return autoencoder_at([str(found[0])]) if found else None

"""How the network of a run or of a file is opened, for Python and for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facm.core.component import shown

if TYPE_CHECKING:
    from facm.latents.autoencoders.types import AutoencoderConfig
    from facm.pretrained.trained import Trained

FILES = (".pt", ".pth", ".safetensors", ".pkl", ".bin", ".ckpt")
OF_FILE = ("family", "weights", "heads", "learns_shortcut", "latent_stats", "latent_scale")
OF_RUN = ("ema", "raw", "high_noise", "trust_recipe")


@dataclass(frozen=True)
class Opening:
    """Which weights of a run or a file, and how its latents become images; see :func:`facm.load` for each."""

    ema: float | None = None
    raw: bool = False
    trust_recipe: bool = False
    high_noise: Path | None = None
    family: str | None = None
    weights: str | None = None
    heads: int | None = None
    learns_shortcut: bool | None = None
    latent_stats: Path | None = None
    latent_scale: float | None = None
    autoencoder: AutoencoderConfig | None = None


def is_file(path: Path) -> bool:
    """Whether ``path`` is, or by its name would be, a file of weights; a run is a folder."""
    return path.is_file() or (not path.is_dir() and path.suffix in FILES)


def open_network(path: Path, how: Opening) -> Trained:
    """The network of the run, or in the file, at ``path``. Raises ValueError for a setting of the other kind."""
    if is_file(path):
        return _of_file(path, how)
    _check_none(how, OF_FILE, f"with the run {path}, expected it with a file only")
    from facm.pretrained.trained import load_trained

    trained = load_trained(path, how.ema, how.raw, trust_recipe=how.trust_recipe)
    if how.high_noise is None and trained.interface.knows_all_times:
        return trained
    from facm.foundation.experts.pair import check_whole, pair_of  # and with it all of diffusers' families

    if how.high_noise is None:
        check_whole(trained)
        return trained
    return pair_of(trained, load_trained(how.high_noise, how.ema, how.raw, trust_recipe=how.trust_recipe))


def _of_file(path: Path, how: Opening) -> Trained:
    _check_none(how, OF_RUN, f"with the file {path}, expected it with a run only; family and weights choose in a file")
    from facm.pretrained.from_file import load_file

    return load_file(
        path,
        how.family,
        how.weights,
        how.heads,
        learns_shortcut=how.learns_shortcut,
        autoencoder=how.autoencoder,
        statistics=how.latent_stats,
        scale=how.latent_scale,
    )


def _check_none(how: Opening, names: tuple[str, ...], where: str) -> None:
    """Raise ValueError where one of these is said."""
    for name in names:
        value: Any = getattr(how, name)
        if value is not None and value is not False:
            said = str(value) if isinstance(value, Path) else shown(value)
            raise ValueError(f"{name} = {said} {where}")

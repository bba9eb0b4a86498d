"""A file of weights that others published, or that this package wrote: recognised, and fitted strictly."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.core.hashing import file_sha256
from facm.core.state_dict import CheckpointError, check_fits
from facm.core.types import NetworkConfig
from facm.core.untrusted.persistence import is_persistent
from facm.core.untrusted.torch_files import read_foreign
from facm.flow.phases import WHOLE
from facm.latents.statistics import Statistics
from facm.networks.adapters.base import inner_config
from facm.pretrained.architecture import architecture
from facm.pretrained.edm import edm_network
from facm.pretrained.families import NAMES, check_family, decide, fitting, network_of
from facm.pretrained.layouts import layout_of
from facm.pretrained.native_format import (
    SAID,
    bounds_of,
    check_seal,
    config_of,
    metadata_of,
    sample_said,
    statistics_of,
    which_of,
)

WHAT = "a checkpoint of DiT, SiT, REPA, LightningDiT, FACM or EDM, or a file that facm exported"

OWN = ("facm", "lightningdit")
"""What a user may say of a file that this package wrote and that does not say whether it learned the shortcut."""


@dataclass(frozen=True, eq=False)
class Published:
    """A network and its weights, in this package's convention.

    network: its configuration, adapters included; what it builds takes ``state`` strictly.
    state: weights by this package's names, float32, on the CPU, mapped from the file where its format allows it.
    family: "facm", "lightningdit", "sit", "dit", "repa" or "edm".
    learns_shortcut: True for a FACM student, False for a teacher of velocities, None where the file does not say.
    which: which of the file's weights, in words.
    shape: of a sample, (C, H, W) or another; None where neither the network's configuration nor the file says it.
    num_classes: without the null label; None for an unconditional network.
    sha256: of the file.
    dropped: the file's keys that were left out on purpose.
    path: the file.
    statistics: of its latents, where this package wrote the file.
    bounds: where its phases begin and end, for a student that does not jump to 1 from all times.
    learns_flow: False for a student without an anchor, where this package wrote the file.
    shape_is_said: whether the file says the shape, of samples that are no latents, since its network does not.
    """

    network: NetworkConfig
    state: Mapping[str, Tensor]
    family: str
    learns_shortcut: bool | None
    which: str
    shape: tuple[int, ...] | None
    num_classes: int | None
    sha256: str
    dropped: tuple[str, ...]
    path: Path
    statistics: Statistics | None = None
    bounds: tuple[float, ...] = WHOLE
    learns_flow: bool = True
    shape_is_said: bool = False


def open_published(
    path: Path, family: str | None = None, weights: str | None = None, heads: int | None = None
) -> Published:
    """Recognise the file at ``path`` and fit its weights.

    family: whose network it is, where keys do not tell (DiT's and SiT's are the same), or a teacher from a student.
    weights: which part of a training checkpoint ("ema", "model", "ema_models.1"); None: the EMA, the last of several.
    heads: attention heads, where the size is not a published one and the weights do not tell.
    Raises ValueError: not there, damaged, holding code, of no known family or of several, with other keys or shapes.
    """
    check_family(family)
    if is_persistent(path):
        return _edm(path, family, weights, heads)
    content = read_foreign(path, WHAT)
    metadata = metadata_of(path)
    if "config" in metadata:
        return _own(path, metadata, content, family, weights)
    layout = layout_of(content, path)
    part = layout.part(weights, path)
    state = _renumbered(part.state)
    projectors = tuple(name for name in state if name.startswith("projectors."))
    config = architecture({name: tuple(value.shape) for name, value in state.items()}, heads, path)
    found, learns = decide(family, fitting(config, bool(projectors)), layout.trained_by, layout.settings, path)
    network, prefix = network_of(found, config)
    kept = {prefix + name: value for name, value in state.items() if name not in projectors}
    dropped = part.dropped + projectors
    return _fitted(path, network, kept, found, learns, part.which, dropped)


def _edm(path: Path, family: str | None, weights: str | None, heads: int | None) -> Published:
    if family not in (None, "edm"):
        raise ValueError(f"{path}: family = {family!r}, but it is a pickle of torch_utils.persistence, as EDM's are")
    if weights not in (None, "ema"):
        raise ValueError(f"{path} has no weights {weights!r}, expected one of: ema")
    if heads not in (None, 1):
        raise ValueError(f"{path}: heads = {heads}, expected 1 or none: EDM's DDPM++ attends with one head")
    network, state = edm_network(path)
    return _fitted(path, network, state, "edm", False, "ema", ())


def _own(
    path: Path, metadata: Mapping[str, str], state: Mapping[str, Tensor], family: str | None, weights: str | None
) -> Published:
    if weights not in (None, "model"):
        raise ValueError(f"{path} has no weights {weights!r}, expected one of: model")
    recorded = metadata.get("family")
    if family is not None and recorded not in (None, family):
        raise ValueError(f"{path}: family = {family!r}, but it says itself that it is {recorded!r}")
    learns = SAID.get(metadata.get("learns_shortcut", "unknown"))
    if family is not None and recorded is None and (family not in OWN or learns not in (None, family == "facm")):
        known = {True: "a student", False: "a teacher", None: "a network of this package"}[learns]
        raise ValueError(f"{path}: family = {family!r}, but it says itself that it is {known}")
    found = family or recorded or "facm"
    check_family(found)
    if learns is None and family is not None:
        learns = family == "facm"
    check_seal(metadata, state, path)
    opened = _fitted(path, config_of(metadata, path), dict(state), found, learns, which_of(metadata), ())
    return dataclasses.replace(
        opened,
        statistics=statistics_of(metadata, path),
        bounds=bounds_of(metadata, path),
        learns_flow=metadata.get("learns_flow") != "false",
        **(sample_said(metadata, path) if opened.shape is None else {}),
    )


def _fitted(
    path: Path,
    network: NetworkConfig,
    state: Mapping[str, Tensor],
    family: str,
    learns_shortcut: bool | None,
    which: str,
    dropped: tuple[str, ...],
) -> Published:
    odd = next((name for name, value in state.items() if not _usable(value)), None)
    if odd is not None:
        raise ValueError(
            f"{path}: {odd} is {state[odd].dtype} {state[odd].layout}, expected dense floating-point weights"
        )
    try:
        with torch.device("meta"):
            empty = network.build()
    except (RuntimeError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: its network {network} cannot be built ({error})") from error
    try:
        check_fits(empty, {name: value.shape for name, value in state.items()}, str(path))
    except CheckpointError as error:
        raise ValueError(f"{error}. It looks like {NAMES[family]}") from error
    shape, num_classes = sample_of(network)
    full = {name: _float32(value) for name, value in state.items()}
    return Published(
        network, full, family, learns_shortcut, which, shape, num_classes, file_sha256(path), dropped, path
    )


def _renumbered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Early REPA files count the blocks after its encoder again from 0, as decoder_blocks."""
    encoder = len({name.split(".")[1] for name in state if name.startswith("blocks.")})

    def renamed(name: str) -> str:
        return re.sub(r"^decoder_blocks\.(\d+)\.", lambda found: f"blocks.{int(found[1]) + encoder}.", name)

    return {renamed(name): value for name, value in state.items()}


def _usable(value: Tensor) -> bool:
    dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
    return dense and value.is_floating_point()


def _float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def sample_of(config: Any) -> tuple[tuple[int, int, int] | None, int | None]:
    """(shape of a sample, number of classes), from the network inside the adapters."""
    config = inner_config(config)
    channels, size = getattr(config, "in_channels", None), getattr(config, "input_size", getattr(config, "size", None))
    shape = (channels, size, size) if isinstance(channels, int) and isinstance(size, int) else None
    return shape, getattr(config, "num_classes", None) or None

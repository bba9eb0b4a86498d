"""From others' files into one of ours, and from our networks into the authors' layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from facm.core.files import TakenError, atomically
from facm.core.modules import without_memory
from facm.core.state_dict import CheckpointError, check_finite, check_fits
from facm.core.types import NetworkConfig
from facm.flow.phases import WHOLE
from facm.networks.adapters.variance_preserving import VariancePreserving
from facm.networks.lightning_dit import LightningDiT
from facm.pretrained.native_format import said_of, spelled, write_own
from facm.pretrained.reader import Published, open_published

ORIGIN = {True: "PostHocEMA, by facm", False: "Standard EMA, by facm", None: "facm"}
"""What the authors' files of students and of teachers begin with."""


def import_file(
    path: Path, out: Path, family: str | None = None, weights: str | None = None, heads: int | None = None
) -> Published:
    """Write the network of a published file into one safetensors file that says what it is; return what was read.

    Arguments as in :func:`facm.pretrained.open_published`; nothing in the file is executed.
    Raises ValueError where it cannot be read or ``out`` exists, CheckpointError where ``out`` cannot be written.
    """
    published = open_published(path, family, weights, heads)
    said = {
        "family": published.family,
        "learns_shortcut": spelled(published.learns_shortcut),
        "which": published.which,
        "source": path.name,
        "source_sha256": published.sha256,
    }
    if published.bounds != WHOLE:
        said["bounds"] = json.dumps(published.bounds)
    if not published.learns_flow:
        said["learns_flow"] = "false"
    if published.statistics is not None:
        said["statistics"] = said_of(published.statistics)
    write_own(out, published.network, published.state, said)
    return published


def export_reference(
    network: torch.nn.Module, config: NetworkConfig, out: Path, learns_shortcut: bool | None = None
) -> None:
    """Write weights in the layout that the public scripts load: {"ema": state dict, "_extracted_from": origin}.

    FACM's, LightningDiT's, SiT's and DiT's scripts all take "ema". For a LightningDiT, also as plain as SiT's, or one
    that predicts noise (DiT). Not REPA's: its script insists on projectors that a network here has not.
    Raises ValueError for another network, for a student in DiT's convention, or if ``out`` exists; CheckpointError
    where it cannot be written.
    """
    if isinstance(config, VariancePreserving) and learns_shortcut:
        raise ValueError(
            f"network = {config!r} learned the shortcut, which no public layout has for DiT's convention: export it to "
            "NAME.safetensors"
        )
    inner = config.network if isinstance(config, VariancePreserving) else config
    if not isinstance(inner, LightningDiT):
        raise ValueError(
            f"network = {config!r} has no public layout: expected a LightningDiT, or a VariancePreserving of one"
        )
    if inner.pixel_norm or inner.weight_head:
        raise ValueError(f"network = {inner!r} has sCM's pixel_norm or weight_head, which no public layout has")
    if out.exists():
        raise ValueError(f"{out} exists and is not overwritten: expected the name of a new file")
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    empty = without_memory(config.build)
    try:
        check_fits(empty, {name: value.shape for name, value in state.items()}, f"the {type(network).__name__}")
        check_finite(empty, state, f"the {type(network).__name__}")
    except CheckpointError as error:
        raise ValueError(f"{error} of config = {config!r}") from error
    prefix = "inner." if inner is not config else ""
    bare = {name.removeprefix(prefix): value for name, value in state.items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomically(out, new=True) as partial, partial.open("wb") as file:  # whose name torch.save does not know
            torch.save({"ema": bare, "_extracted_from": ORIGIN[None if prefix else learns_shortcut]}, file)
    except TakenError as error:
        raise ValueError(f"{out} exists and is not overwritten: expected the name of a new file") from error
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"could not write {out}: {error}") from error

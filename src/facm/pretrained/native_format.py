"""This package's own file of a network (``facm weights export | import``): safetensors, whose metadata say what it is.

config: the network's configuration as JSON. Optional: family, learns_shortcut ("true", "false", "unknown"), learns_flow
("false" of a student without an anchor), shape (of a sample, a JSON list) and classes where the network does not say
them, which, sigma_rel (of the EMA, or "raw"), images (the clock), bounds (of phases other than [0, 1], as a JSON list),
schedule (the searched one, see :mod:`facm.sampling.schedule`), statistics (of the latents: mean, std, multiplier),
source and source_sha256 (the file that it was imported from), sha256 (of all of this and the weights).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.core.files import TakenError, atomically
from facm.core.hashing import digest
from facm.core.modules import without_memory
from facm.core.serialize import from_json, to_json, types_in
from facm.core.state_dict import CheckpointError, check_finite
from facm.core.types import NetworkConfig
from facm.core.untrusted.safetensors_header import read_header
from facm.flow.phases import WHOLE, Phases
from facm.latents.space import LatentSpace
from facm.latents.statistics import Statistics

SEAL = "sha256"
SAID = {"true": True, "false": False, "unknown": None}


def seal(metadata: Mapping[str, str], weights: Mapping[str, Tensor]) -> str:
    """The sha256 of the metadata, but for the seal itself, and of the weights."""
    said = json.dumps(sorted(item for item in metadata.items() if item[0] != SEAL))
    return hashlib.sha256(f"{said} {digest(weights)}".encode()).hexdigest()


def check_seal(metadata: Mapping[str, str], weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise ValueError where the file is not what was written; the first version's files cannot tell."""
    if SEAL in metadata and metadata[SEAL] != seal(metadata, weights):
        raise ValueError(f"{path} is damaged: its content does not match its digest")


def spelled(learns_shortcut: bool | None) -> str:
    return next(word for word, meaning in SAID.items() if meaning is learns_shortcut)


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for any other."""
    with contextlib.suppress(ValueError):
        return read_header(path).metadata
    return {}


def config_of(metadata: Mapping[str, str], path: Path) -> NetworkConfig:
    """The network's configuration. Raises ValueError unless it is made of this package's networks: rebuilding another
    would import whatever module the file names."""
    try:
        recorded = json.loads(metadata["config"])
    except ValueError as error:
        raise ValueError(f"{path}: its metadata 'config' is not JSON ({error})") from error
    foreign = sorted(name for name in types_in(recorded) if not name.startswith("facm.networks:"))
    if foreign or not isinstance(recorded, dict):
        raise ValueError(
            f"{path}: its network is {', '.join(foreign) or recorded!r}, expected one of facm.networks: a network of "
            "your own is opened from its run folder, with FromRun"
        )
    try:
        config = from_json(recorded)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: its metadata 'config' does not describe a network ({error})") from error
    if not isinstance(config, NetworkConfig):
        raise ValueError(f"{path}: its metadata 'config' is {config!r}, expected a network's configuration")
    return config


def which_of(metadata: Mapping[str, str]) -> str:
    """Which weights these are, in words."""
    sigma_rel = metadata.get("sigma_rel")
    averaged = {None: "the only weights", "raw": "raw"}.get(sigma_rel, f"EMA {sigma_rel}")
    return metadata.get("which", averaged)


def bounds_of(metadata: Mapping[str, str], path: Path) -> tuple[float, ...]:
    """Where the phases of the network begin and end; (0, 1) where the file does not say. Raises ValueError for anything
    but increasing times."""
    if "bounds" not in metadata:
        return WHOLE
    try:
        said = json.loads(metadata["bounds"])
        return Phases(tuple(float(bound) for bound in said)).bounds
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: its metadata 'bounds' are not those of phases ({error})") from error


def sample_said(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """``shape`` and ``num_classes`` as the file says them, and that it does; nothing where it does not. Raises
    ValueError for anything but a shape and a number of classes."""
    if "shape" not in metadata:
        return {}
    try:
        space = LatentSpace(tuple(json.loads(metadata["shape"])), json.loads(metadata.get("classes", "null")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata 'shape' and 'classes' are not those of samples ({error})") from error
    return {"shape": space.shape, "num_classes": space.num_classes, "shape_is_said": True}


def statistics_of(metadata: Mapping[str, str], path: Path) -> Statistics | None:
    """The latent statistics that were exported with the network."""
    if "statistics" not in metadata:
        return None
    try:
        said = json.loads(metadata["statistics"])
        return Statistics(torch.tensor(said["mean"]), torch.tensor(said["std"]), float(said["multiplier"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: its metadata 'statistics' are not latent statistics ({error})") from error


def said_of(statistics: Statistics) -> str:
    """The inverse of :func:`statistics_of`."""
    means, deviations = statistics.mean.tolist(), statistics.std.tolist()
    return json.dumps({"mean": means, "std": deviations, "multiplier": statistics.multiplier})


def write_own(out: Path, config: NetworkConfig, state: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    """Write atomically. Raises ValueError if ``out`` exists, CheckpointError if it cannot be written, or if a weight is
    not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    check_finite(without_memory(config.build), state, f"what was to become {out}")
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    metadata = {"format": "pt", "config": json.dumps(to_json(config)), **said}
    metadata[SEAL] = seal(metadata, weights)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomically(out, new=True) as partial:
            save_file(weights, partial, metadata=metadata)
    except TakenError as error:
        raise ValueError(f"{out} exists and is not overwritten: expected the name of a new file") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {out}: {error}") from error

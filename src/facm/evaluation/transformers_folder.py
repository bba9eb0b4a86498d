"""A local model in transformers' format, held against its configuration before it takes memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from facm.core.untrusted.door import read_json
from facm.core.untrusted.safetensors_header import check_numbers, check_size, read_header


def check_config(folder: Path, kind: str, name: str, wanted: str, config_type: Any, model_type: Any) -> None:
    """Raise ValueError unless the folder's configuration is of a model no larger than its weights.

    kind: the model's type in config.json. name: what people call it. wanted: what was expected, for a folder that
    cannot be read. config_type, model_type: transformers' classes.
    """
    file = folder / "config.json"
    try:
        said, header = read_json(file), read_header(folder / "model.safetensors")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read ({error}); {wanted}") from error
    found = said.get("model_type") if isinstance(said, dict) else None
    if found != kind:
        raise ValueError(f"{folder} holds a model of type {found!r}, expected {kind!r}")
    check_numbers(said, header, str(file))
    with torch.device("meta"):  # without memory, before there is one with
        try:
            network = model_type(config_type(**said))
        except Exception as error:  # transformers fails in many ways on foreign configurations
            raise ValueError(f"{file} describes no {name} model ({type(error).__name__}: {error!s:.200})") from error
    check_size(sum(value.numel() for value in network.parameters()), header, str(file))

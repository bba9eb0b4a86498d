"""Whether prepared data are of a model: the same VAE, text encoders and, where it made the pictures, transformer."""

from __future__ import annotations

from pathlib import Path

from facm.foundation.captions.manifest import read_manifest
from facm.foundation.folder import ModelFolder


def check_origin(data: Path, model: ModelFolder) -> None:
    """Raise ValueError, naming the part, where ``data`` were prepared with another model than ``model``."""
    manifest = read_manifest(data)
    if manifest.pipeline not in model.family.pipelines:
        raise ValueError(
            f"data = {str(data)!r} was prepared for a {manifest.pipeline}, {model.path} is a {model.pipeline}"
        )
    found = model.identity(*manifest.hashes)
    differ = [f"{name} {found[name]}, not {was}" for name, was in manifest.hashes.items() if found[name] != was]
    if differ:
        raise ValueError(
            f"data = {str(data)!r} was prepared with another model than {model.path}, which has {'; '.join(differ)}; "
            "expected the same, or data prepared anew with 'facm prepare'"
        )

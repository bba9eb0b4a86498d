"""Where prepared data come from: of which model they are, and with which guidance it made them."""

from __future__ import annotations

from pathlib import Path

from facm.foundation.captions.manifest import MANIFEST, read_manifest
from facm.foundation.folder import ModelFolder


def check_origin(data: Path, model: ModelFolder) -> None:
    """Raise ValueError, naming the part, where ``data`` were prepared with another model than ``model``."""
    manifest = read_manifest(data)
    if manifest.pipeline not in model.family.pipelines:
        raise ValueError(
            f"data = {str(data)!r} was prepared for a {manifest.pipeline}, {model.path} is a {model.pipeline}"
        )
    missing = [name for name in manifest.hashes if name not in model.parts]
    if missing:
        raise ValueError(
            f"data = {str(data)!r} was prepared with the {missing[0]} of another model, and {model.path} has none; "
            "expected that model, or data prepared anew with 'facm prepare'"
        )
    found = model.identity(*manifest.hashes)
    differ = [f"{name} {found[name]}, not {was}" for name, was in manifest.hashes.items() if found[name] != was]
    if differ:
        raise ValueError(
            f"data = {str(data)!r} was prepared with another model than {model.path}, which has {'; '.join(differ)}; "
            "expected the same, or data prepared anew with 'facm prepare'"
        )


def scales_of(data: Path) -> tuple[float, float]:
    """The guidance that the model made ``data`` with, as its pipeline counts it: of the expert of high noise, or of the
    one transformer, and of that of low noise; 0 where there was none, and where there are no data yet."""
    if not (data / MANIFEST).is_file():
        return 0.0, 0.0
    teacher = read_manifest(data).teacher
    return (0.0, 0.0) if teacher is None else (teacher.guidance_scale, teacher.guidance_scale_2 or 0.0)

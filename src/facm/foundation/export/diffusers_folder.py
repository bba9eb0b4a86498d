"""A student as a folder that ``DiffusionPipeline.from_pretrained`` opens: all parts of its model, merged weights, and a
scheduler for few steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from facm.core.files import folder_atomically
from facm.core.untrusted.door import open_regular, read_json
from facm.foundation.export.card import card
from facm.foundation.export.experts import index_entries
from facm.foundation.export.lowrank import exported
from facm.foundation.export.schedule import Kind, class_of, new_scheduler
from facm.foundation.export.student import Student
from facm.foundation.folder import INDEX, SCHEDULER, SECOND, TRANSFORMER, ModelFolder

ORIGIN = "facm_export.json"
"""The file that says where an export comes from."""
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
NOT_COPIED = frozenset({".py", ".pyc", ".bin", ".pt", ".pth", ".ckpt", ".pkl"})
"""Code, and pickles, which could hold it; a model is loaded without either."""
SHARD = "10GB"


def write_folder(
    student: Student, out: Path, num_steps: int = 2, kind: Kind = "stock", dtype: torch.dtype | None = None
) -> None:
    """Write the folder ``out``, completely or not at all.

    num_steps: what the scheduler is set for, where it cannot be right for all numbers, and what the model card shows.
    kind: of the scheduler. dtype: of the transformer's weights; None: as they were trained.
    Raises TakenError where there is something at ``out``.
    """
    with folder_atomically(out) as partial:
        for part, network in student.networks.items():
            exported(network, dtype).save_pretrained(  # type: ignore[operator]
                partial / part, safe_serialization=True, max_shard_size=SHARD
            )
        own = {TRANSFORMER, SECOND, *([SCHEDULER] if student.few_step else [])}
        for name in student.model.parts.keys() - own:
            copy_part(student.model.path / name, partial / name)
        for pattern in LICENCES:
            for file in student.model.path.glob(pattern):
                _copy(file, partial / file.name)
        if student.few_step:
            steps = _train_timesteps(student.model)
            scheduler = new_scheduler(student.model.pipeline, num_steps, kind, steps, student.bounds)
            scheduler.save_pretrained(partial / SCHEDULER)
        write_json(partial / INDEX, _index(student, kind))
        write_json(partial / ORIGIN, student.origin)
        (partial / "README.md").write_text(card(student, "diffusers", num_steps, kind, out.name), encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file in a folder that is not yet in its place."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_part(source: Path, target: Path) -> None:
    """Copy a component's files, following links, as a cache of models is made of them; none that hold code.

    Raises ValueError for what is no regular file.
    """
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source)
        if file.is_dir() or file.suffix in NOT_COPIED or any(part.startswith(".") for part in name.parts):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _copy(file, target / name)


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, 2**24)


def _index(student: Student, kind: Kind) -> dict[str, Any]:
    """model_index.json: the model's own, with another scheduler."""
    index = dict(read_json(student.model.path / INDEX))
    index.pop("_name_or_path", None)
    index |= index_entries(student)
    if student.few_step:
        index[SCHEDULER] = list(class_of(kind, student.bounds))
        if "is_distilled" in index:  # a pipeline with this setting does not guide a model that has it
            index["is_distilled"] = True
    return index


def _train_timesteps(model: ModelFolder) -> int:
    settings = read_json(model.path / SCHEDULER / "scheduler_config.json")
    steps = settings.get("num_train_timesteps") if isinstance(settings, dict) else None
    return steps if isinstance(steps, int) and steps > 0 else 1000

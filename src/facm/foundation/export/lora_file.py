"""Adapters as a file that diffusers' ``load_lora_weights`` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.core.files import folder_atomically
from facm.foundation.export.card import card
from facm.foundation.export.diffusers_folder import ORIGIN, write_json
from facm.foundation.export.experts import HALVES
from facm.foundation.export.lowrank import LowRank
from facm.foundation.export.schedule import Kind
from facm.foundation.export.student import Student
from facm.foundation.folder import Part


def write_lora(
    student: Student,
    differences: Mapping[Part, Mapping[str, LowRank]],
    out: Path,
    num_steps: int = 2,
    dtype: torch.dtype = torch.float32,
    said: str = "",
    kind: Kind = "stock",
) -> None:
    """Write the folder ``out`` with pytorch_lora_weights.safetensors, completely or not at all; of a pair two folders
    in it, high_noise and low_noise.

    differences: transformer of the exported pipeline -> its layer -> the adapter. num_steps: what the model card shows.
    said: a sentence about the adapters for the card. kind: of the scheduler that it shows. Raises TakenError where
    there is something at ``out``.
    """
    import diffusers

    with folder_atomically(out) as partial:
        for part, layers in differences.items():
            getattr(diffusers, student.model.pipeline).save_lora_weights(
                partial if student.high is None else partial / HALVES[part],
                transformer_lora_layers=state_dict(layers, dtype),
                transformer_lora_adapter_metadata=metadata(layers),
            )
        write_json(partial / ORIGIN, student.origin)
        (partial / "README.md").write_text(card(student, "lora", num_steps, kind, out.name, said), encoding="utf-8")


def state_dict(differences: Mapping[str, LowRank], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """peft's names for a transformer without a prefix; every adapter's scale is in its weights."""
    state = {}
    for name, difference in sorted(differences.items()):
        state[f"{name}.lora_A.weight"] = difference.down.to("cpu", dtype).contiguous()
        state[f"{name}.lora_B.weight"] = difference.up.to("cpu", dtype).contiguous()
    return state


def metadata(differences: Mapping[str, LowRank]) -> dict[str, Any]:
    """The arguments of peft's LoraConfig for these adapters: each with its rank, and a scale of 1."""
    ranks = {name: difference.rank for name, difference in sorted(differences.items())}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # ^ ties a pattern to the whole name: else "proj_out" would be that of every block, too.
    others = {f"^{name}": rank for name, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": list(ranks),
        "use_dora": False,
        "lora_bias": False,
    }

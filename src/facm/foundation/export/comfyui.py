"""Adapters as one file that ComfyUI's "Load LoRA" node reads.

ComfyUI maps diffusers' names onto its own networks for some families, and takes its own names for all
(``comfy/lora.py``, ``model_lora_keys_unet``). Seen in its source, not tried in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.core.files import atomically
from facm.foundation.export.lowrank import LowRank
from facm.foundation.export.student import Student

WAN = (
    (r"^blocks\.(\d+)\.attn1\.", r"blocks.\1.self_attn."),
    (r"^blocks\.(\d+)\.attn2\.", r"blocks.\1.cross_attn."),
    (r"_attn\.to_([qkv])$", r"_attn.\1"),
    (r"_attn\.to_out\.0$", r"_attn.o"),
    (r"_attn\.add_([kv])_proj$", r"_attn.\1_img"),
    (r"^blocks\.(\d+)\.ffn\.net\.0\.proj$", r"blocks.\1.ffn.0"),
    (r"^blocks\.(\d+)\.ffn\.net\.2$", r"blocks.\1.ffn.2"),
    (r"^condition_embedder\.time_embedder\.linear_1$", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2$", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1$", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2$", "text_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^proj_out$", "head.head"),
)
LTX = ((r"^proj_in$", "patchify_proj"), (r"^time_embed\.", "adaln_single."))


def _renamed(rules: tuple[tuple[str, str], ...]) -> Callable[[str], str]:
    def rename(layer: str) -> str:
        for pattern, name in rules:
            layer = re.sub(pattern, name, layer)
        return f"diffusion_model.{layer}"

    return rename


def _mapped_there(layer: str) -> str:
    return f"transformer.{layer}"


NAMES: dict[str, Callable[[str], str]] = {
    "FluxPipeline": _mapped_there,
    "StableDiffusion3Pipeline": _mapped_there,
    "QwenImagePipeline": _mapped_there,
    "ZImagePipeline": _renamed(()),
    "WanPipeline": _renamed(WAN),
    "LTXPipeline": _renamed(LTX),
}
"""Pipeline -> a layer's name in diffusers -> its name in the file."""


def comfyui_state(pipeline: str, differences: Mapping[str, LowRank], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors by ComfyUI's names. Raises ValueError for a family that it has no names for."""
    if pipeline not in NAMES:
        raise ValueError(
            f"to = 'comfyui' with a {pipeline}, whose layers ComfyUI has no names for; expected one of "
            f"{', '.join(sorted(NAMES))}; 'lora' and 'diffusers' are written for every family"
        )
    wan = pipeline == "WanPipeline"
    down, up = ("lora_down", "lora_up") if wan else ("lora_A", "lora_B")
    state: dict[str, Tensor] = {}
    for layer, difference in sorted(differences.items()):
        name = NAMES[pipeline](layer)
        state[f"{name}.{down}.weight"] = difference.down.to("cpu", dtype).contiguous()
        state[f"{name}.{up}.weight"] = difference.up.to("cpu", dtype).contiguous()
        if wan and ".blocks." in name:  # elsewhere diffusers does not expect one; without it the scale is 1, too
            state[f"{name}.alpha"] = torch.tensor(float(difference.rank), dtype=dtype)
    return state


def write_comfyui(
    student: Student, differences: Mapping[str, LowRank], out: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write the file ``out``, NAME.safetensors, completely or not at all. Raises TakenError where it is there,
    ValueError for a family that ComfyUI has no names for."""
    from safetensors.torch import save_file

    state = comfyui_state(student.model.pipeline, differences, dtype)
    said: dict[str, Any] = {"format": "pt", "facm_export": json.dumps(student.origin)}
    with atomically(out, new=True) as partial:
        save_file(state, partial, metadata=said)

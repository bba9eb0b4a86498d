"""The outline of a published model: its configuration without weights, and one empty sample of its data, so that memory
and work of a run can be counted where neither is at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from facm.core.files import write_text
from facm.foundation.captions.manifest import MANIFEST, Bucket, Manifest, Part, ShardRecord
from facm.foundation.captions.shards import NULL, prompt_tensors, sample_tensors, write
from facm.foundation.folder import INDEX, SECOND, TRANSFORMER, VAE, open_model

# Wan-Video/Wan2.2, wan/configs/wan_t2v_A14B.py, by diffusers' names: two transformers of 14.3 billion weights each.
WAN22_A14B: dict[str, Any] = {
    "_class_name": "WanTransformer3DModel",
    **{"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "freq_dim": 256},
    **{"in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "text_dim": 4096, "eps": 1e-6},
    **{"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024},
}
BOUNDARY = 0.875
TOKENS, WIDTH = 512, 4096
"""Of a prompt's embedding."""
SPATIAL, TEMPORAL, CHANNELS = 8, 4, 16
"""Pixels and frames of one latent, and its channels."""


def outline_wan22(folder: Path, height: int, width: int, frames: int = 1) -> tuple[Path, Path]:
    """``folder``/model and ``folder``/data for pictures, or clips, of this size in pixels.

    Raises ValueError for a size that the model cannot make.
    """
    step = 2 * SPATIAL
    for name, value in (("height", height), ("width", width)):
        if value < step or value % step:
            raise ValueError(f"{name} = {value}, expected a multiple of {step}")
    if frames < 1 or frames % TEMPORAL != 1:
        raise ValueError(f"frames = {frames}, expected 1 or another multiple of {TEMPORAL} plus 1, such as 81")
    model, data = folder / "model", folder / "data"
    _model(model)
    shape = (CHANNELS, (frames - 1) // TEMPORAL + 1, height // SPATIAL, width // SPATIAL)
    _data(data, model, Bucket(height, width, 1, shape, frames))
    return model, data


def _model(folder: Path) -> None:
    parts: dict[str, list[str]] = {
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        **{name: ["diffusers", "WanTransformer3DModel"] for name in (TRANSFORMER, SECOND)},
        VAE: ["diffusers", "AutoencoderKLWan"],
    }
    for name in parts:
        (folder / name).mkdir(parents=True)
        config = WAN22_A14B if name in (TRANSFORMER, SECOND) else {}
        write_text(folder / name / "config.json", json.dumps(config))
    write_text(folder / INDEX, json.dumps({"_class_name": "WanPipeline", "boundary_ratio": BOUNDARY, **parts}))


def _data(folder: Path, model: Path, bucket: Bucket) -> None:
    folder.mkdir(parents=True)
    row = {"embeddings": torch.zeros(TOKENS, WIDTH, dtype=torch.bfloat16)}
    prompt = prompt_tensors([" "], [row], frozenset())
    files = {
        "prompts_00000.safetensors": prompt,
        "samples_00000.safetensors": sample_tensors(torch.zeros(1, *bucket.shape)),
    }
    records = [_record(folder, name, tensors) for name, tensors in files.items()]
    null_sha256 = write(folder / NULL, prompt)
    manifest = Manifest(
        n=1,
        shard_size=1,
        dtype="F32",
        buckets=(bucket,),
        parts=(Part("embeddings", "BF16", (TOKENS, WIDTH), tokens=False),),
        pipeline="WanPipeline",
        family="Wan",
        model=str(model),
        hashes=open_model(model).identity(VAE),
        negative_prompt="",
        null_sha256=null_sha256,
        cut=0,
        teacher=None,
        source="an outline",
        source_fingerprint="",
        prompts=(records[0],),
        samples=(records[1],),
    )
    write_text(folder / MANIFEST, manifest.text())


def _record(folder: Path, name: str, tensors: dict[str, Any]) -> ShardRecord:
    sha256 = write(folder / name, tensors)
    return ShardRecord(name, 1, (folder / name).stat().st_size, sha256)

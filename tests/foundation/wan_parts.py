"""A tiny Wan in diffusers' layout, random, and prompts' embeddings for it; made in a second, without a download."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facm import FACM, AdamW, Guidance, Intervals, PowerEMA, Run, TeacherVelocity
from facm.core.cond import Cond, chosen, repeated, size
from facm.core.objective import Condition
from facm.core.types import Batch
from facm.foundation import DiffusersModel, FromModel, LoRA, OwnBase

TOKENS, WIDTH = 6, 16


def tiny_wan(path: Path) -> Path:
    """The folder, made where it is not there yet."""
    if (path / "model_index.json").exists():
        return path
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    symbols = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_alone = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, pad_token="<pad>", eos_token="</s>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=len(symbols), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=32,
            ffn_dim=48,
            num_layers=2,
            rope_max_seq_len=32,
        )
        torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)  # zeros would hide the prompt
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            attn_scales=[],
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 2.0, 0.5, 1.5],
        )
    pipe = WanPipeline(tokenizer, encoder, vae, FlowMatchEulerDiscreteScheduler(), transformer)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        pipe.save_pretrained(path)
    return path


BOUNDARY = 0.875


def tiny_wan22(path: Path) -> Path:
    """The folder of a tiny Wan of two experts, made where it is not there yet: that of low noise has other weights."""
    if (path / "model_index.json").exists():
        return path
    from diffusers import WanTransformer3DModel

    tiny_wan(path)
    low = WanTransformer3DModel.from_pretrained(path / "transformer")
    rng = torch.Generator().manual_seed(1)
    for parameter in low.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    low.save_pretrained(path / "transformer_2")
    index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
    index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": BOUNDARY}
    (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Prompted:
    """Latents with embeddings, random."""

    n: int = 16
    shape: tuple[int, ...] = (4, 1, 4, 4)

    def open(self) -> Opened:
        return Opened(self.n, self.shape)


@dataclass(frozen=True)
class Opened:
    n: int
    shape: tuple[int, ...] = (4, 1, 4, 4)
    num_classes: int | None = None
    flip: bool = False

    def __len__(self) -> int:
        return self.n

    def read(self, indices: np.ndarray) -> Batch:
        rng = torch.Generator().manual_seed(0)
        x_1 = torch.randn(self.n, *self.shape, generator=rng)
        embeddings = torch.randn(self.n, TOKENS, WIDTH, generator=rng)
        which = torch.from_numpy(np.asarray(indices))
        return Batch(x_1[which], {"embeddings": embeddings[which]})


@dataclass(frozen=True)
class ZeroNull(Condition):
    """Embeddings, whose null is zeros."""

    def null(self, cond: Any) -> Cond:
        like = cond["embeddings"]
        return repeated({"embeddings": torch.zeros(1, TOKENS, WIDTH, device=like.device)}, len(like))

    def check(self, cond: Any, n: int) -> None:
        if not isinstance(cond, Mapping) or size(cond) != n:
            raise ValueError(f"expected embeddings of {n} prompts")

    def drop(self, cond: Any, dropped: Tensor) -> Cond:
        return chosen(dropped, self.null(cond), cond)


def wan_run(model: Path, lora: bool, **changes: Any) -> Run:
    """Four steps of a student with adapters, or of all weights."""
    network = DiffusersModel(str(model), LoRA(4), smooth=100.0) if lora else DiffusersModel(str(model))
    values: dict[str, Any] = {
        "network": network,
        "data": Prompted(),
        "objective": FACM(ZeroNull(), TeacherVelocity(Guidance(2.0, 0.0))),
        "images": 32,
        "batch_size": 8,
        "optimizer": AdamW(lr=1e-3),
        "ema": PowerEMA((0.05,)),
        "teacher": OwnBase() if lora else FromModel(network),
        "every": Intervals(log=8, checkpoint=16, ema_snapshots=0),
    }
    return Run(**(values | changes))

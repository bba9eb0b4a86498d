"""What the tests of prepared data share: a tiny model, prompts and pictures, and a family of varied lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from facm.foundation.families.wan import Wan
from facm.foundation.prepare.pipeline import Options

PROMPTS = ("a red fox", "a blue fish in the sea", "seven", "a handwritten four", "snow")
FAST = Options(size=(32,), steps=2, guidance_scale=3.0, negative_prompt="bad", batch_size=2, shard_size=2)
PICTURES = Options(buckets=True, size=(48,), batch_size=2, shard_size=2)
SIZES = ((64, 32), (32, 64), (48, 48), (64, 32), (32, 66), (33, 64))
"""Width and height in pixels."""


def prompts_file(folder: Path, prompts: Sequence[str] = PROMPTS) -> Path:
    path = folder / "prompts.txt"
    path.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return path


def photos(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """Pictures in two folders, each with its caption."""
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(sizes):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(f"picture {i}\n", encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


class Masked(Wan):
    """Prompts as their letters' numbers, padded to the longest of a batch, with a mask and a pooled vector."""

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        longest = max(map(len, prompts)) + 1
        embeddings, mask = torch.full((len(prompts), longest, 3), 9.0), torch.zeros(len(prompts), longest).bool()
        for row, prompt in enumerate(prompts):
            letters = torch.tensor([float(ord(c)) for c in prompt] + [0.0])  # the last, an end, counts
            embeddings[row, : len(letters)] = letters[:, None]
            mask[row, : len(letters)] = True
        return {"embeddings": embeddings, "mask": mask, "pooled": embeddings[:, 0, :2].bfloat16()}

    def most_tokens(self, pipe: Any) -> int:
        return 10

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        return len(prompt) + 1

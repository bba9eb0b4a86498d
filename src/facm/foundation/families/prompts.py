"""Embeddings of prompts whose padding takes no part, and the defaults of a pipeline's call."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor


def without_padding(embeddings: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """``embeddings`` (B, L, D) and ``mask`` (B, L), true for tokens at the start, cut to the longest prompt, with zeros
    where there is no token."""
    mask = mask.bool()
    longest = int(mask.sum(1).max())
    mask = mask[:, :longest]
    return {"embeddings": embeddings[:, :longest].masked_fill(~mask.unsqueeze(-1), 0.0), "mask": mask}


def padded(embeddings: list[Tensor]) -> dict[str, Tensor]:
    """Embeddings (L_i, D) of prompts of any lengths as one tensor with its mask."""
    mask = torch.nn.utils.rnn.pad_sequence([e.new_ones(len(e), dtype=torch.bool) for e in embeddings], batch_first=True)
    return {"embeddings": torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True), "mask": mask}


def lengths(mask: Tensor) -> list[int]:
    """How many tokens each prompt of ``mask`` (B, L) has; L on the meta device, which has no numbers."""
    return [mask.shape[1]] * len(mask) if mask.is_meta else mask.sum(1).tolist()


def default_of(pipe: Any, argument: str) -> Any:
    """The default of an argument of the pipeline's call."""
    return inspect.signature(type(pipe).__call__).parameters[argument].default

"""Which precision a run's forward passes have on a device."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch

from facm.runs.config import Run


def resolved_precision(run: Run, device: torch.device) -> str:
    """ "fp32" or "bf16": what ``run.precision`` means on this device."""
    if run.precision != "auto":
        return run.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(run: Run, device: torch.device) -> AbstractContextManager[Any]:
    """The forward pass in the run's precision; norms, time embeddings and losses stay in float32 inside."""
    if resolved_precision(run, device) == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()

"""The range of the data, and whether samples that the flow makes are of the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facm.api.checkup.finding import Finding
from facm.api.checkup.subject import Subject
from facm.sampling.images import is_image

SMALLEST, LARGEST = 0.2, 2.5
"""Standard deviations of data that are of the scale of noise N(0, 1)."""
APART = 1.5
"""Ratio of the standard deviations of samples and data from which on one of them is scaled otherwise."""


def data_found(subject: Subject) -> Finding:
    """Range, mean and standard deviation of the batch."""
    x = subject.seen.float()
    if not subject.has_data:
        return Finding(
            "data", "note", f"none given, so noise of shape {tuple(x.shape[1:])} takes their place", "data=..."
        )
    low, high, mean, std = float(x.min()), float(x.max()), float(x.mean()), float(x.std())
    said = f"{len(subject.dataset)} samples of shape {tuple(x.shape[1:])} in [{low:.3g}, {high:.3g}], mean {mean:.2f}, "
    said += f"standard deviation {std:.2f}"
    if is_image(tuple(x.shape[1:])) and low >= 0 and high <= 1:
        return Finding("data", "note", f"{said}: images in [0, 1]", "2 * x - 1  # in the data set: [-1, 1] is usual")
    if not SMALLEST <= std <= LARGEST:
        line = f"(x - {mean:.3g}) / {std:.3g}  # in the data set, and the network trained on that"
        return Finding("data", "wrong", f"{said}: of another scale than the noise, N(0, 1)", line)
    return Finding("data", "good", said)


def samples_found(subject: Subject, samples: Tensor) -> Finding:
    """Whether ``samples`` (n, ...) of the flow are of the data's scale."""
    if not bool(samples.isfinite().all()):
        return Finding("samples", "wrong", "not finite", "a teacher that is trained; see the line on its convention")
    std, mean = float(samples.std()), float(samples.mean())
    said = f"{len(samples)} by the flow in 32 steps: mean {mean:.2f}, standard deviation {std:.2f}"
    if not subject.has_data:
        return Finding("samples", "note", said)
    x = subject.seen.float()
    of_data, ratio = float(x.std()), std / max(float(x.std()), 1e-12)
    said += f"; of data {float(x.mean()):.2f}, {of_data:.2f}"
    apart = not 1 / APART <= ratio <= APART or abs(mean - float(x.mean())) > of_data * (APART - 1)
    if apart or not math.isfinite(ratio):
        line = f"x * {ratio:.3g}  # in the data set, if the network was trained on data of its samples' scale"
        return Finding("samples", "wrong", f"{said}: of another scale than the data", line)
    return Finding("samples", "good", said)


def sheet(samples: Tensor, data: Tensor | None, columns: int = 8) -> Tensor:
    """Pictures (n, 1 or 3, H, W) in [-1, 1]: a row of data, then samples. What is no picture is one of its numbers, a
    sample in each line."""
    both = samples if data is None else torch.cat([data[:columns].float().cpu(), samples])
    shape = tuple(both.shape[1:])
    if is_image(shape) or len(shape) == 4:
        return both
    if len(shape) == 3:
        return both[:, :3] if shape[0] >= 3 else both[:, :1]
    lines = both.flatten(1)[:, :256]
    scale = lines.abs().max().clamp(min=1e-12)
    return (lines / scale)[None, None].repeat_interleave(8, 2).repeat_interleave(max(1, 256 // lines.shape[1]), 3)

"""Which samples an evaluation draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from facm.core.cond import Cond
from facm.core.objective import Condition
from facm.data.frames import is_clip, spaced
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.sampling.generate import balanced_labels, random_labels, sample
from facm.sampling.methods import Method
from facm.sampling.source import Source

LabelDraw = Literal["balanced", "random"]


class SampleDecoder(Protocol):
    """What makes images (B, C, H, W) about [-1, 1] of a network's samples (B, ...), such as latents."""

    @property
    def identity(self) -> str:
        """Which one it is, for the record."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class ClipDecoder(SampleDecoder, Protocol):
    """A decoder that may make clips (B, C, frames, H, W)."""

    def frames(self, shape: tuple[int, ...], /) -> int:
        """Number of frames of what becomes of a sample of ``shape``; 1 for images."""
        ...


@dataclass(frozen=True)
class Sampling:
    """Which samples are drawn and measured.

    method: how they are made of noise.
    n: how many, at least 2.
    seed: sample i is a function of (seed, i).
    guidance: its strength and interval; none for a student that was distilled with guidance.
    batch_size: samples drawn at once, which does not change them.
    labels: "balanced": sample i has label i mod classes; "random": a function of (seed, i), as many papers draw them.
    decoder: what makes images of them; None where they are measured as they are.
    frames_per_clip: at most so many frames of each clip are measured, evenly spaced, the first and the last among them;
        None: all of them.
    """

    method: Method
    n: int
    seed: int = 0
    guidance: Guidance = NO_GUIDANCE
    batch_size: int = 256
    labels: LabelDraw = "balanced"
    decoder: SampleDecoder | None = None
    frames_per_clip: int | None = None

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"n = {self.n}, expected at least 2 samples to measure")
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}, expected at least 1")
        if self.frames_per_clip is not None and self.frames_per_clip < 1:
            raise ValueError(f"frames_per_clip = {self.frames_per_clip}, expected at least 1")
        if self.labels not in ("balanced", "random"):
            raise ValueError(f"labels = {self.labels!r}, expected 'balanced' or 'random'")

    def cond(self, condition: Condition, indices: range) -> Tensor | None:
        """The labels (len(indices),) of samples ``indices``; None for an unconditional network."""
        if self.labels == "balanced":
            return balanced_labels(condition, indices)
        return random_labels(condition, indices, self.seed)

    def draw(self, source: Source, indices: range, cond: Cond) -> Tensor:
        """Samples ``indices``, decoded where there is a decoder."""
        x = sample(source, self.method, indices, cond, self.seed, self.guidance)
        if self.decoder is None:
            return x
        with torch.no_grad():
            return self.decoder(x)

    def frames(self, shape: tuple[int, ...]) -> int | None:
        """Number of frames that are measured of each sample of ``shape``; None where samples are no clips."""
        if self.decoder is None:
            made = shape[1] if is_clip(shape) else None
        else:
            decoded = self.decoder.frames(shape) if isinstance(self.decoder, ClipDecoder) else 1
            made = decoded if decoded > 1 else None
        return None if made is None else len(spaced(made, self.frames_per_clip))

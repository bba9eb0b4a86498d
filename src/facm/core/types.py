"""What every layer agrees on: a batch, a loss, and the protocols a user's own parts must satisfy.

Conventions, everywhere in this package: time ``t`` is a tensor of shape (B,) in [0, 1], t = 0 is noise and
t = 1 is data; ``x_t = (1 - t) x_0 + t x_1``; the velocity is ``v = x_1 - x_0``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from facm.core.cond import Cond, mapped


@dataclass(frozen=True)
class Batch:
    """Data samples and what they are conditioned on.

    x_1: (B, ...) float32; images are (B, C, H, W) in [-1, 1].
    cond: (B,) int64 class labels, any other tensor (B, ...), several by name, such as a prompt's embeddings (B, L, D)
        and mask (B, L) bool, or None where there is no condition.
    start, of: these are samples start .. start + B of a step's ``of`` samples (None: B), where ranks or micro-batches
        share them; what is random is drawn for all ``of``, so that the sharing does not change the numbers.
    """

    x_1: Tensor
    cond: Cond = None
    start: int = 0
    of: int | None = None

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.x_1.to(device), mapped(lambda value: value.to(device), self.cond), self.start, self.of)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, as ``torch.utils.data.DataLoader`` asks for it."""
        return Batch(self.x_1.pin_memory(), mapped(Tensor.pin_memory, self.cond), self.start, self.of)


@dataclass(frozen=True)
class Loss:
    """``total`` () carries the graph; ``terms`` are detached per-sample values (B,) for the log.

    t: (B,), the times of the samples, where the objective says them: the log then has the terms by quarters of time.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    t: Tensor | None = None

    def at(self, t: Tensor) -> Loss:
        """The same, of samples at the times t (B,)."""
        return Loss(self.total, self.terms, t.detach())


class VelocityField(Protocol):
    """A velocity as a function of state and time: x (B, ...), t (B,) -> (B, ...)."""

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor: ...


class Network(Protocol):
    """F(x, c, cond). ``t`` (B,) is the time condition c, in [0, 2] for the expanded interval; ``r`` (B,) the second
    time of the auxiliary-time strategy, passed only to networks whose attribute ``auxiliary_time`` is true."""

    def __call__(self, x: Tensor, t: Tensor, cond: Cond = None, **times: Tensor) -> Tensor: ...


Scale = float | Tensor
"""Strength of guidance: of all samples, or of each, (B, 1, ..., 1)."""


@runtime_checkable
class GuidesItself(Protocol):
    """A network whose guided velocity is not v_u + w (v_c - v_u), as some pipelines rescale it."""

    def guide_velocity(self, v_c: Tensor, v_u: Tensor, scale: Scale) -> Tensor:
        """The velocity (B, ...) guided with ``scale``, of the predictions under the condition and the null."""
        ...


@runtime_checkable
class SaysWhyEmpty(Protocol):
    """A data set without samples that knows why it has none, and what to do."""

    why_empty: str


@runtime_checkable
class Rests(Protocol):
    """A frozen network some of whose weights are in host memory while they are not asked."""

    def resting_bytes(self) -> int:
        """Bytes that it takes less on the device than it has: what is brought takes the place of as much else."""
        ...


@runtime_checkable
class CanRest(Protocol):
    """The configuration of a frozen network part of which can wait in host memory while it is not asked."""

    def resting(self) -> CanRest:
        """The same network, with that part there."""
        ...


@runtime_checkable
class PartlyElsewhere(Protocol):
    """A network's configuration some of whose weights are not in the network's state dict, and so in no checkpoint, but
    in files that ``build`` reads."""

    partly_elsewhere: bool


@runtime_checkable
class FillsItself(Protocol):
    """A network, or a part of one, that reads its weights from files into parameters that have no values yet: where it
    is sharded, each rank reads its own part of them, and nothing is whole in one place."""

    def fill(self) -> None:
        """Read all weights. Raises ValueError naming files that are not those of this network."""
        ...


@runtime_checkable
class InFiles(Protocol):
    """A configuration of a network, or a teacher, whose weights are in files that :class:`FillsItself` networks read,
    so that it can be built without them."""

    def files(self) -> tuple[Path, ...]:
        """These files, of those that are there."""
        ...

    def files_sha256(self) -> str:
        """A hash of these files."""
        ...

    def check_files(self) -> None:
        """Raise ValueError where they are not the files that the run began with."""
        ...


@runtime_checkable
class NetworkConfig(Protocol):
    """A network's configuration: frozen, and built into an ``nn.Module`` satisfying :class:`Network`."""

    def build(self) -> torch.nn.Module: ...


class Dataset(Protocol):
    """An opened data set. ``read`` is a pure function of the indices.

    One with samples of several shapes also has ``buckets``, the indices of the samples of each shape as int64 arrays,
    and ``bucket_shape(index)``; a batch is then of one bucket, and ``shape`` is that of the first.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one x_1, e.g. (C, H, W)."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None without labels."""
        ...

    @property
    def flip(self) -> bool:
        """Whether mirroring an image left to right gives another valid sample."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Batch:
        """Samples ``indices`` (B,) int64, in that order."""
        ...


@runtime_checkable
class HasPrompts(Protocol):
    """An opened data set whose samples are conditioned on prompts that a person can read."""

    def prompts(self, indices: np.ndarray) -> list[str]:
        """The prompts of the samples ``indices`` (B,)."""
        ...


@runtime_checkable
class Data(Protocol):
    """A data set's configuration: frozen, and opened into a :class:`Dataset`."""

    def open(self) -> Dataset: ...

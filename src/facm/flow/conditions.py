"""What a network is conditioned on besides time, and its null: owned by the objective, so that networks stay pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facm.core.objective import Condition


@dataclass(frozen=True)
class Labels:
    """Class labels 0 .. classes - 1 as (B,) int64; the null label is ``classes``."""

    classes: int
    """Number of classes."""

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"Labels: classes = {self.classes}, expected at least 1")

    def null(self, cond: Tensor | None) -> Tensor:
        if cond is None:
            raise ValueError("Labels: the batch has no labels; use Unconditional() for unlabelled data")
        return torch.full_like(cond, self.classes)

    def check(self, cond: Tensor | None, n: int) -> None:
        if cond is None:
            raise ValueError("Labels: the batch has no labels; use Unconditional() for unlabelled data")
        if cond.shape != (n,) or cond.dtype != torch.int64:
            raise ValueError(f"labels have shape {tuple(cond.shape)} and type {cond.dtype}, expected ({n},) int64")
        if cond.device.type == "cpu" and n and not (int(cond.min()) >= 0 and int(cond.max()) <= self.classes):
            raise ValueError(
                f"labels run over [{int(cond.min())}, {int(cond.max())}], expected [0, {self.classes - 1}] "
                f"(or {self.classes} for the null label)"
            )

    def drop(self, cond: Tensor | None, dropped: Tensor) -> Tensor:
        null = self.null(cond)
        assert cond is not None
        return torch.where(dropped, null, cond)


@dataclass(frozen=True)
class Unconditional:
    """No condition: the network is called with cond = None, and there is nothing to guide with."""

    def null(self, cond: Tensor | None) -> None:
        raise ValueError("Unconditional: there is no null condition to guide with; use guidance scale 1")

    def check(self, cond: Tensor | None, n: int) -> None:
        if cond is not None:
            raise ValueError("Unconditional: the batch has conditions; use Labels(classes) or data without labels")

    def drop(self, cond: Tensor | None, dropped: Tensor) -> None:
        raise ValueError("Unconditional: there is no condition to drop; use label_dropout 0")


def check_label_dropout(condition: Condition, probability: float) -> None:
    """Raise ValueError where labels are to be dropped and there are none."""
    if probability and isinstance(condition, Unconditional):
        raise ValueError(f"Unconditional: label_dropout = {probability}, expected 0 where there are no labels")

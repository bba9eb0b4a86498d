"""What a network is conditioned on besides time, and its null: owned by the objective, so that networks stay pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from facm.core.component import Range, component, refused
from facm.core.objective import Condition

Dropout = Annotated[float, Range("[0, 1)")]
"""A fraction of samples that lose their condition, which some must keep."""


@dataclass(frozen=True)
@component
class Labels(Condition):
    """Class labels 0 .. classes - 1 as (B,) int64; the null label is ``classes``."""

    classes: Annotated[int, Range("[1, 16777216]")]
    """Number of classes, at least 1."""

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
class Unconditional(Condition):
    """No condition: the network is called with cond = None, and there is nothing to guide with."""

    def null(self, cond: Tensor | None) -> None:
        raise ValueError("Unconditional: there is no null condition to guide with; use guidance scale 1")

    def check(self, cond: Tensor | None, n: int) -> None:
        if cond is not None:
            raise ValueError("Unconditional: the batch has conditions; use Labels(classes) or data without labels")

    def drop(self, cond: Tensor | None, dropped: Tensor) -> None:
        raise ValueError("Unconditional: there is no condition to drop; use label_dropout 0")


def check_label_dropout(objective: Any) -> None:
    """Raise ComponentError where an objective is to drop labels and there are none; its default becomes 0 there.

    objective: one with the fields ``condition`` and ``label_dropout``, while it is made.
    """
    if not isinstance(objective.condition, Unconditional) or objective.label_dropout == 0:
        return
    if objective.label_dropout != type(objective).label_dropout:
        raise refused(objective, "label_dropout", "0 with condition = Unconditional(): there are no labels")
    object.__setattr__(objective, "label_dropout", 0.0)

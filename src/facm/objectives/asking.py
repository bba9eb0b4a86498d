"""An objective some of whose targets come from an average of the network's weights."""

from __future__ import annotations

from typing import Annotated, Any

from facm.core.component import Range
from facm.core.objective import Condition, Objective
from facm.objectives.bound import Bound

Momentum = Annotated[float, Range("[0, 1)")]
"""What an exponential average keeps of itself in each step."""


class AsksAverage(Objective):
    """An objective some targets of which come from an average of the network, with ``momentum``; 0: from itself."""

    condition: Condition
    momentum: float

    @property
    def average_momentum(self) -> float | None:  # type: ignore[override]
        return self.momentum or None

    def asking(self, average: Any) -> Objective:
        return Bound(self, average=average)

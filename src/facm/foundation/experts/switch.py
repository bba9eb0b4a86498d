"""Two networks that share the noise levels as one: each sample is asked of the one that its time belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from facm.core.cond import Cond, taken
from facm.core.types import GuidesItself, Scale
from facm.distributed.collectives import any_of_default_group
from facm.distributed.wrap import is_sharded
from facm.flow.guidance import extrapolate
from facm.flow.two_experts import of_high_noise
from facm.foundation.experts.residence import Residence, sized

Resident = Literal["both", "one"]
"""Which experts are on the device that computes: both, or the one that is asked, and the other in host memory."""
Name = Literal["high", "low"]


class TwoExperts(nn.Module):
    """F(x, t, cond) of the expert of high noise where sigma = 1 - t is at least ``boundary``, else of the other.

    high, low: F(x, t, cond); a module, or what asks a module elsewhere in another state.
    boundary: noise level, within (0, 1); see :func:`facm.flow.two_experts.of_high_noise`.
    residence: what brings experts to the device that computes, by the names high and low; None: they are there.

    A batch all of whose times belong to one expert asks that one alone. Sharded experts are asked by all ranks
    together, with one sample that is thrown away on a rank that has none for an expert.
    """

    auxiliary_time = False

    def __init__(self, high: Any, low: Any, boundary: float, residence: Residence | None = None) -> None:
        super().__init__()
        self.high, self.low, self.boundary = high, low, boundary
        self.residence = residence

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """x (B, ...), t (B,) in [0, 2] -> like x."""
        if t.is_meta:  # there are no times to go by; sizes are the same, and a sorted batch asks one
            return self._expert("low")(x, t, cond)
        rows = self._rows(t)
        mine = [name for name, which in rows.items() if len(which)]
        needed = self._needed(mine)
        if mine == needed and len(mine) == 1:
            return self._ask(mine[0], x, t, cond)
        parts = []
        for name in needed:
            which = rows[name]
            one = which if len(which) else torch.zeros(1, dtype=torch.int64, device=t.device)
            part = self._ask(name, x[one], t[one], taken(cond, one))
            parts.append(part[: len(which)])
        order = torch.cat([rows[name] for name in needed])
        return torch.cat(parts)[order.argsort()]

    def guide_velocity(self, v_c: Tensor, v_u: Tensor, scale: Scale) -> Tensor:
        """The guided velocity by the rule of the experts, which are of one family."""
        rule: Callable[..., Tensor] = self.low.guide_velocity if isinstance(self.low, GuidesItself) else extrapolate
        return rule(v_c, v_u, scale)

    def resting_bytes(self) -> int:
        """Bytes of the expert that waits in host memory; of the smaller, where they differ. None without residence."""
        return 0 if self.residence is None else min(map(sized, (self.high, self.low)))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or convert all but experts that are brought where they are asked."""
        return self if self.residence is not None else super()._apply(fn, recurse)

    def _rows(self, t: Tensor) -> dict[Name, Tensor]:
        """The samples of each expert; first that of the one that is on the device, so that it is not brought twice."""
        high = of_high_noise(t, self.boundary)
        rows: dict[Name, Tensor] = {"high": high.nonzero().squeeze(1), "low": (~high).nonzero().squeeze(1)}
        there = None if self.residence is None else self.residence.there
        return dict(sorted(rows.items(), key=lambda item: item[0] != there))

    def _needed(self, mine: Sequence[Name]) -> list[Name]:
        """The experts that this rank, or with sharded weights any rank, has samples for."""
        if not any(is_sharded(p) for p in self.parameters()):
            return list(mine)
        names: tuple[Name, Name] = ("high", "low")
        flags = any_of_default_group([name in mine for name in names])
        return [name for name, flag in zip(names, flags, strict=True) if flag]

    def _ask(self, name: Name, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if self.residence is not None:
            self.residence.bring(name, x.device)
        return self._expert(name)(x, t, cond)

    def _expert(self, name: Name) -> Callable[..., Tensor]:
        expert: Callable[..., Tensor] = self.high if name == "high" else self.low
        return expert

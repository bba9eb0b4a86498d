"""What a model's time embedding does to the tangent, measured on one batch before anything is trained.

diffusers' transformers embed 1000 t, so that the fastest sinusoids can dominate dF/dt, and the clamp then leaves little
of the target. Each row of the table takes out all frequencies above a cutoff, as ``smooth`` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from facm.core.rng import derive
from facm.core.types import Dataset
from facm.data.checked import first_indices, read_checked
from facm.flow.interpolant import Interpolant
from facm.foundation.network import DiffusersModel
from facm.foundation.smoothing import Smoothing
from facm.objectives.facm import FACM
from facm.runs.config import Run, teacher_of

CUTOFFS = (500.0, 200.0, 100.0, 50.0, 20.0, 10.0)
"""Radians per unit of t."""
MOST_CHANGE = 0.03
"""Relative change of F that a cutoff may make; the rest is for training to mend."""
LEAST_GAIN = 2 / 3
"""A cutoff is recommended where the clamped share falls to this part of what it was, or below."""


@dataclass(frozen=True)
class ProbeRow:
    """One cutoff.

    cutoff: highest frequency that is kept, in radians per unit of t; None: all.
    columns: number of columns that are kept.
    change: relative change of F by the cutoff, as a ratio of root mean squares.
    anchor: the anchor's loss.
    tangent_rms: root mean square of dF/dt.
    clamped: share of the elements of the residual g beyond its clamp.
    """

    cutoff: float | None
    columns: int
    change: float
    anchor: float
    tangent_rms: float
    clamped: float


@dataclass(frozen=True)
class Probe:
    """The rows, from all frequencies to the fewest.

    n: samples in the batch.
    output_rms: root mean square of F.
    """

    rows: tuple[ProbeRow, ...]
    n: int
    output_rms: float

    @property
    def recommended(self) -> float | None:
        """The cutoff with the smallest clamped share among those that hardly change F; None where nothing is gained."""
        before, *cut = self.rows
        mild = [row for row in cut if row.change <= MOST_CHANGE]
        best = min(mild, key=lambda row: row.clamped, default=None)
        return best.cutoff if best is not None and best.clamped <= LEAST_GAIN * before.clamped else None

    def __str__(self) -> str:
        lines = [
            f"one batch of {self.n}, |F| = {self.output_rms:.3g}",
            "highest frequency   columns   change of F   anchor loss   |dF/dt|   clamped",
        ]
        for row in self.rows:
            name = "all" if row.cutoff is None else f"{row.cutoff:g}"
            lines.append(
                f"{name:>17}   {row.columns:>7}   {row.change:>11.2%}   {row.anchor:>11.4f}   "
                f"{row.tangent_rms:>7.3g}   {row.clamped:>7.1%}"
            )
        if self.recommended is None:
            lines.append(
                f"no cutoff changes F by at most {MOST_CHANGE:.0%} and clamps at most {LEAST_GAIN:.0%} of what "
                "is clamped with all: leave smooth at 0"
            )
        else:
            lines.append(f"recommended: --smooth {self.recommended:g}")
        return "\n".join(lines)


@torch.no_grad()
def probe(run: Run, dataset: Dataset, device: torch.device, n: int = 32) -> Probe:
    """The table for the network of ``run`` before its first step, at the draws of the first n samples.

    Raises ValueError where the network is no diffusers model, or the objective is not FACM.
    """
    if not isinstance(run.network, DiffusersModel):
        raise ValueError(f"network = {run.network}, expected a DiffusersModel, whose time embedding is known")
    network = replace(run.network, smooth=None).build().to(device).eval()
    if not isinstance(run.objective, FACM):
        raise ValueError(f"objective = {type(run.objective).__name__}, expected FACM, which has a tangent")
    objective, teacher = run.objective, teacher_of(run, network, device)
    batch = read_checked(dataset, first_indices(dataset, n)).to(device)
    rng = torch.Generator(device).manual_seed(derive(run.seed, 0))
    point = Interpolant.draw(batch, objective.phases.times(objective.time), objective.condition, 0.0, rng)
    embedding = network.family.time_embedding(network.transformer)
    before, rows = None, []
    for cutoff in (None, *CUTOFFS):
        if cutoff is not None and not bool((embedding.frequencies <= cutoff).any()):
            continue
        mask = Smoothing(network.transformer, embedding, float("inf") if cutoff is None else cutoff)
        network.smoothing = mask
        terms = objective.evaluate(network, point, teacher)
        before = terms.F_CM if before is None else before
        rows.append(
            ProbeRow(
                cutoff,
                int(mask.slow.sum()),
                float(_rms(terms.F_CM - before) / _rms(before)),
                float(terms.L_FM.mean()),
                float(_rms(terms.dF)),
                float((terms.g.abs() > (objective.clamp or 1.0)).float().mean()),
            )
        )
        mask.remove()
    assert before is not None
    return Probe(tuple(rows), len(batch.x_1), float(_rms(before)))


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()

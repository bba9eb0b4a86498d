"""The derivative's strategies: as exact as each other, so they must give the same curve."""

from __future__ import annotations

from facm.derivative import Chain, Derivative, FiniteDifference, NoGraph, OpLevel, WholeNetwork
from facm.objectives.facm import FACM
from facm.studies.rows import UNGUIDED, Bench
from facm.studies.study import Study

PART = 3
STRATEGIES: dict[str, Derivative] = {
    "op-level": OpLevel(),
    "whole": WholeNetwork(),
    "no-graph": NoGraph(),
    "chain": Chain(),
    "finite-difference": FiniteDifference(),
}


def strategies(bench: Bench) -> Study:
    """FACM for a third of the usual length, the derivative computed in five ways."""
    setting = bench.setting
    images = setting.images // PART // setting.batch_size * setting.batch_size
    return Study(
        title="Derivative strategies",
        source="Sec. 5 (cost of the JVP)",
        question="Do all ways to compute the total derivative train the same student?",
        teachers=(bench.teacher(),),
        entries=tuple(
            bench.facm(
                f"facm-{name}",
                name,
                objective=FACM(setting.condition, UNGUIDED, time=setting.time, anchor=setting.anchor, derivative=how),
                images=images,
            )
            for name, how in STRATEGIES.items()
        ),
    )

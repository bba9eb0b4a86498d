"""Table 3: which objectives train stably from one teacher, and how good they are on equal budgets."""

from __future__ import annotations

from facm.flow.weighting import One
from facm.objectives.continuous_cm import ContinuousCM
from facm.studies.rows import UNGUIDED, Bench, published
from facm.studies.study import Study

LONGER = 1.6
"""A step of FACM costs 8 forward passes (teacher 1, anchor 3, shortcut with its tangent 4), one of a method without
anchor 5: so many more images are the same compute."""


def stability(bench: Bench) -> Study:
    """FACM in both conditionings, MeanFlow, sCM with and without pixel norm, and consistency without an anchor.

    The published numbers are FIDs with one step on ImageNet 256.
    """
    longer = round(LONGER * bench.setting.images / bench.setting.batch_size) * bench.setting.batch_size
    bare = ContinuousCM(bench.setting.condition, UNGUIDED, time=bench.setting.time, alpha=One(), clamp=None)
    return Study(
        title="Stability",
        source="Table 3",
        question="Which objectives train stably from one teacher, and how good are they on equal budgets?",
        teachers=(bench.teacher(), bench.teacher(pixel_norm=True)),
        entries=(
            published(bench.facm(label="FACM, expanded interval"), {1: 1.76}),
            published(bench.facm_auxiliary(), {1: 1.93}),
            bench.facm_pixel_norm(),
            published(bench.mean_flow(), {1: 2.75}),
            bench.mean_flow("mean-flow-long", "MeanFlow, FACM's compute", images=longer),
            published(bench.scm(label="sCM, pixel norm"), {1: 3.04}),
            bench.scm("scm-long", "sCM, pixel norm, FACM's compute", images=longer),
            bench.scm("scm-without", "sCM without pixel norm", teacher="teacher", pixel_norm=False),
            bench.plain(label="FACM without anchor"),
            bench.plain("plain-cm-bare", "... without interpolation and clamp", bare),
            published(bench.facm_scratch(), {1: 2.27}),
            published(bench.mean_flow_scratch(), {1: 2.65}),
        ),
        free=("budget",),
    )

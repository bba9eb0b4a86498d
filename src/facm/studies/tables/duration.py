"""Fig. 3 (c): one step and two steps over the length of the distillation, of FACM and of its rivals."""

from __future__ import annotations

from dataclasses import replace

from facm.runs.optim import Constant
from facm.studies.rows import Bench
from facm.studies.study import Study

TIMES = 2
POINTS = 6


def duration(bench: Bench) -> Study:
    """Runs of twice the usual length at a constant learning rate, measured as they go."""
    setting = bench.setting
    step = TIMES * setting.images // POINTS // setting.batch_size * setting.batch_size
    images = step * POINTS
    entries = (
        replace(bench.facm("facm-duration", "FACM", images=images), series="FACM"),
        replace(bench.mean_flow("mean-flow-duration", "MeanFlow", images=images), series="MeanFlow"),
        replace(bench.scm("scm-duration", "sCM, pixel norm", images=images), series="sCM"),
    )
    optimizer = replace(setting.optimizer, decay=Constant())
    every = replace(setting.every, ema_snapshots=step)
    clocks = tuple(step * point for point in range(1, POINTS))
    return Study(
        title="Duration",
        source="Fig. 3 (c)",
        question="Do one step and two steps get better together while a student is distilled?",
        teachers=(bench.teacher(), bench.teacher(pixel_norm=True)),
        entries=tuple(
            replace(entry, run=replace(entry.run, optimizer=optimizer, every=every), at=clocks, nfe=(1, 2, 4))
            for entry in entries
        ),
        x_label="images of the distillation",
    )

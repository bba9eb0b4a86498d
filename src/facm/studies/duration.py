"""Fig. 3 (c): one step and two steps over the length of the distillation."""

from __future__ import annotations

from dataclasses import replace

from facm.optim import Constant
from facm.studies.entries import Bench
from facm.studies.study import Study

TIMES = 4
POINTS = 8


def duration(bench: Bench) -> Study:
    """One run of four times the usual length at a constant learning rate, measured as it goes."""
    setting = bench.setting
    step = setting.every.ema_snapshots
    images = -(-TIMES * setting.images // step) * step
    every = max(1, images // step // POINTS)
    clocks = tuple(range(step * every, images, step * every))
    entry = bench.facm("facm-duration", "FACM", images=images)
    run = replace(entry.run, optimizer=replace(setting.optimizer, decay=Constant()))
    return Study(
        title="Duration",
        source="Fig. 3 (c)",
        question="Do one step and two steps get better together while a student is distilled?",
        teachers=(bench.teacher(),),
        entries=(replace(entry, run=run, at=clocks, nfe=(1, 2, 4), series="FACM"),),
        x_label="images of the distillation",
    )

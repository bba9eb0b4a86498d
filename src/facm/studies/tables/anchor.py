"""How much anchor, and what becomes of it where the teacher never saw c_FM."""

from __future__ import annotations

from dataclasses import replace

from facm.studies.rows import Bench
from facm.studies.study import Entry, Study

WEIGHTS = (0.1, 1.0, 10.0)


def anchor(bench: Bench) -> Study:
    """The anchor's weight, from a teacher adapted to both conditions (App. A.3 a) and from an ordinary one."""
    own, unadapted = bench.teacher(), bench.teacher(mixed=0.0)
    entries: list[Entry] = []
    for teacher, series in ((own, "adapted teacher"), (unadapted, "ordinary teacher")):
        suffix = "-unadapted" * (teacher is unadapted)
        none = bench.plain("plain-cm" + suffix, f"no anchor, {series}")
        run = bench.setting.student(none.run.objective, bench.folder / teacher.name, bench.seed)
        entries.append(replace(none, run=run))
        for weight in WEIGHTS:
            name = "facm" + ("" if weight == 1 else f"-anchor-{weight:g}") + suffix
            entry = bench.facm(name, f"anchor x {weight:g}, {series}", teacher=teacher.name, anchor_weight=weight)
            entries.append(replace(entry, series=series, x=weight))
    return Study(
        title="Anchor",
        source="Sec. 3.2, App. A.3 (a)",
        question="How much anchor does a student need, and does the teacher have to know c_FM?",
        teachers=(own, unadapted),
        entries=tuple(entries),
        free=("teacher",),
        x_label="weight of the anchor",
    )

"""Fig. 3 (b): students of teachers that were trained for shorter or longer."""

from __future__ import annotations

from dataclasses import replace

from facm.studies.rows import Bench
from facm.studies.study import Entry, Study

STOPS = (16, 4)
"""Teachers of 1/16, 1/4 and all of the setting's images, each with a schedule of its own."""


def teacher(bench: Bench) -> Study:
    """FACM against sCM, each from a teacher of the same length."""
    whole = bench.setting.teacher_images
    batch = bench.setting.batch_size
    entries: list[Entry] = []
    teachers: list[Entry] = []
    for part in (*STOPS, 1):
        images = None if part == 1 else whole // part // batch * batch
        own, normed = bench.teacher(images), bench.teacher(images, pixel_norm=True)
        teachers += [own, normed]
        after = "" if part == 1 else f"-after-{images}"
        seen = images or whole
        facm = bench.facm(f"facm{after}", f"FACM, teacher of {seen:,} images", teacher=own.name)
        scm = bench.scm(f"scm{after}", f"sCM, teacher of {seen:,} images", teacher=normed.name)
        entries += [replace(facm, series="FACM", x=seen), replace(scm, series="sCM", x=seen)]
    return Study(
        title="Teacher",
        source="Fig. 3 (b)",
        question="Does a teacher that was trained for longer make a better student?",
        teachers=tuple(teachers),
        entries=tuple(entries),
        free=("teacher",),
        x_label="images the teacher was trained on",
    )

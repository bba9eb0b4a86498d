"""When consistency without an anchor collapses: guidance, interpolation and clamp, norm, learning rate."""

from __future__ import annotations

from dataclasses import replace

from facm.flow.distances import L2
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.flow.weighting import One
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.facm import FACM
from facm.runs.optim import AdamW
from facm.studies.rows import Bench
from facm.studies.study import Entry, Study

SCALES = (1.0, 1.75)
SLOWER = 4


def collapse(bench: Bench) -> Study:
    """With and without the anchor, guidance, what bounds the target, and at a lower learning rate."""
    condition, time = bench.setting.condition, bench.setting.time
    entries: list[Entry] = []
    for scale in SCALES if bench.setting.label_dropout else SCALES[:1]:  # guidance needs a null condition
        suffix, said = ("", "") if scale == 1 else (f"-w{scale:g}", f", w = {scale:g}")
        velocity = TeacherVelocity(Guidance(scale))
        facm = FACM(condition, velocity, time=time, anchor=bench.setting.anchor)
        bare = ContinuousCM(condition, velocity, time=time, alpha=One(), clamp=None)
        least = ContinuousCM(condition, velocity, time=time, shortcut=L2(), alpha=One(), beta=One(), clamp=None)
        entries += [
            bench.facm(f"facm{suffix}", f"FACM{said}", objective=facm),
            bench.plain(f"plain-cm{suffix}", f"without anchor{said}", ContinuousCM(condition, velocity, time=time)),
            bench.plain(f"plain-cm-bare{suffix}", f"... nor interpolation, clamp{said}", bare),
            bench.plain(f"plain-cm-l2{suffix}", f"... nor norm and beta: plain L2{said}", least),
        ]
    slow = replace(bench.setting.optimizer, lr=bench.setting.optimizer.lr / SLOWER)
    entries += [
        _at(slow, bench.facm("facm-slow", f"FACM, learning rate / {SLOWER}")),
        _at(slow, bench.plain("plain-cm-slow", f"without anchor, learning rate / {SLOWER}")),
    ]
    return Study(
        title="Collapse",
        source="Sec. 3.1.2",
        question="What does consistency without an anchor need to collapse?",
        teachers=(bench.teacher(),),
        entries=tuple(entries),
    )


def _at(optimizer: AdamW, entry: Entry) -> Entry:
    return replace(entry, run=replace(entry.run, optimizer=optimizer))

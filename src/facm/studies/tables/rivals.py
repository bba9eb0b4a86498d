"""Table 1 in miniature: the few-step methods beside each other, from one teacher, on the same images."""

from __future__ import annotations

from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.objectives.discrete_cm import DiscreteCM
from facm.objectives.discrete_schedules import DoublingSteps, ShrinkingGap, SignalToNoise
from facm.objectives.imm import IMM
from facm.objectives.shortcut_model import ShortcutModel
from facm.studies.rows import UNGUIDED, Bench, published
from facm.studies.study import Study

STAGES = 8


def rivals(bench: Bench) -> Study:
    """All start from the teacher's weights; iCT, ECT and IMM then learn from the data alone.

    The published numbers are FIDs on unconditional CIFAR-10; those of iCT, ECT and IMM are of runs of their own.
    """
    setting = bench.setting
    condition, drop = setting.condition, setting.label_dropout
    grid = DoublingSteps(setting.images)
    shrinking = ShrinkingGap(stage=setting.images // STAGES)
    from_data = DataVelocity()
    return Study(
        title="Rivals",
        source="Table 1",
        question="How do the few-step methods compare on the same images and the same teacher?",
        teachers=(bench.teacher(), bench.teacher(pixel_norm=True)),
        entries=(
            published(bench.facm(), {1: 2.69, 2: 1.87}),
            published(bench.mean_flow(), {1: 2.92}),
            published(bench.scm(), {1: 2.85, 2: 2.06}),
            published(
                bench.distilled("cd", "discrete CD", DiscreteCM(condition, grid, TeacherVelocity(UNGUIDED.guidance))),
                {2: 2.93},
            ),
            published(
                bench.distilled("ict", "iCT", DiscreteCM(condition, grid, from_data, label_dropout=drop)),
                {1: 2.83},
            ),
            published(
                bench.distilled(
                    "ect",
                    "ECT",
                    DiscreteCM(condition, shrinking, from_data, weight=SignalToNoise(), label_dropout=drop),
                ),
                {1: 3.60, 2: 2.11},
            ),
            bench.distilled(
                "shortcut",
                "Shortcut model",
                ShortcutModel(condition, UNGUIDED, label_dropout=0.0),
                auxiliary_time=True,
            ),
            published(
                bench.distilled("imm", "IMM", IMM(condition, label_dropout=drop), auxiliary_time=True),
                {1: 3.20, 2: 1.98},
            ),
            published(bench.tract(), {2: 3.32}),
            bench.align_your_flow(),
        ),
    )

"""Tables 2-4, Fig. 3: which objective ends ahead, on equal compute from one teacher, and when the order settles.

All velocities are one teacher's. Networks with pixel norm start from a teacher of their own kind, for the weights of
another would mean another function to them.
"""

from __future__ import annotations

from dataclasses import replace

from facm.objectives.align_your_flow import AlignYourFlow
from facm.objectives.scm import SCM
from facm.pretrained.trained import FromRun
from facm.studies.rows import Bench, published
from facm.studies.scales import TEACHER_EMA
from facm.studies.study import COMPUTE, Entry, Study

BUDGETS = (1, 4, 16)
POINTS = 4
"""Moments of a run at which it is measured, its end among them."""
FACM_STEP, STEP = 8, 5
"""Forward passes of a step: FACM's (teacher 1, anchor 3, shortcut with its tangent 4), and one's without an anchor."""

PAPER = ("facm", "facm-auxiliary", "facm-pixel-norm", "mean-flow", "scm", "scm-without", "plain-cm")


def _arms(bench: Bench) -> dict[str, tuple[Entry, float]]:
    """Name -> the entry at the size's own length, and the forward passes of one of its steps.

    The published numbers are FIDs with one step on ImageNet 256.
    """
    without = bench.scm("scm-without", "sCM without pixel norm", teacher="teacher", pixel_norm=False)
    return {
        "facm": (published(bench.facm(), {1: 1.76}), FACM_STEP),
        "facm-auxiliary": (published(bench.facm_auxiliary(), {1: 1.93}), FACM_STEP),
        "facm-pixel-norm": (bench.facm_pixel_norm(), FACM_STEP),
        "mean-flow": (published(bench.mean_flow(), {1: 2.75}), STEP),
        "scm": (published(bench.scm(label="sCM, pixel norm"), {1: 3.04}), STEP),
        "scm-without": (without, STEP),
        "plain-cm": (bench.plain(), STEP),
        "tract": (bench.tract(), STEP),
        "ayf": (bench.align_your_flow(), STEP),
    }


def order(bench: Bench, budgets: tuple[int, ...] = BUDGETS, arms: tuple[str, ...] = PAPER) -> Study:
    """FACM in both conditionings, MeanFlow, sCM with and without pixel norm, consistency without an anchor.

    budgets: lengths of the runs, in multiples of FACM's at this size; the others have as many forward passes.
    arms: what is compared, "facm" among them; beside the paper's own there are "tract" and "ayf".
    Raises ValueError for budgets or arms that are none.
    """
    made = _arms(bench)
    if not budgets or min(budgets) < 1 or len(set(budgets)) < len(budgets):
        raise ValueError(f"budgets = {budgets}, expected different whole multiples of the size's length, at least 1")
    if "facm" not in arms or not set(arms) <= made.keys() or len(set(arms)) < len(arms):
        raise ValueError(f"arms = {arms}, expected 'facm' and others of {', '.join(made)}, each once")
    entries = tuple(_at(bench, name, *made[name], budget=budget) for budget in budgets for name in arms)
    teacher, pixel_norm = bench.teacher(), bench.teacher(pixel_norm=True)
    starts = [entry.run.initial for entry in entries]
    starts_there = FromRun(str(bench.folder / pixel_norm.name), sigma_rel=TEACHER_EMA) in starts
    return Study(
        title="Order",
        source="Tables 2-4, Fig. 3",
        question="Which objective is ahead on equal compute from one teacher, and where does the order settle?",
        teachers=(teacher, pixel_norm) if starts_there else (teacher,),
        entries=entries,
        free=("budget",),
        x_label=COMPUTE,
        pixels=True,
    )


def _at(bench: Bench, name: str, entry: Entry, passes: float, budget: int) -> Entry:
    """An arm with as many forward passes as FACM has within the budget."""
    setting, run = bench.setting, entry.run
    quarter = POINTS * setting.batch_size
    images = round(FACM_STEP / passes * budget * setting.images / quarter) * quarter
    point = images // POINTS
    objective = run.objective
    if isinstance(objective, SCM | AlignYourFlow):  # its warm-up is a share of its run
        objective = replace(objective, warmup_images=images // 10)
    teacher = setting.student(objective, bench.folder / "teacher", bench.seed).teacher
    label = f"{entry.label}, {budget}x"
    return replace(
        entry,
        name=f"order-{name}-{budget}x",
        label=label,
        run=replace(
            run,
            objective=objective,
            images=images,
            teacher=teacher,
            every=replace(setting.every, ema_snapshots=point),
        ),
        nfe=(1, 2),
        at=tuple(point * k for k in range(1, POINTS)),
        series=label,
        against=f"order-facm-{budget}x",
    )

"""What a study is: networks that are trained alike but for the one thing that is studied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from facm.pretrained.trained import FromRun
from facm.runs.config import Run
from facm.runs.folder import open_run
from facm.training.checks import check_network

Freedom = Literal["teacher", "budget"]

COMPUTE = "forward passes of the training"
"""The figure's axis of a study whose rows cost different amounts an image."""


@dataclass(frozen=True)
class Entry:
    """One trained network.

    name: of its folder; the same name is the same run in every study.
    label: its name in the table.
    run: how it is trained.
    nfe: the numbers of steps it is measured at.
    at: further clocks (images seen) at which it is measured, where its run must keep EMA snapshots.
    series: its line in the study's figure.
    x: its place on the figure's axis.
    published: number of steps -> FID of this row in the paper; on other data, for comparison of the order only.
    against: name of the entry that its distance is compared with, seed by seed; "": the study's first.
    """

    name: str
    label: str
    run: Run
    nfe: tuple[int, ...] = (1, 2)
    at: tuple[int, ...] = ()
    series: str = ""
    x: float | None = None
    published: dict[int, float] = field(default_factory=dict)
    against: str = ""


@dataclass(frozen=True)
class Study:
    """A question, the networks that answer it, and what they are allowed to differ in.

    title: of the table.
    question: one sentence.
    entries: what is compared.
    teachers: what the entries need first; measured as well.
    source: the table or figure of the paper.
    free: what the rows may differ in apart from the objective: "teacher" or "budget" (the number of images).
    x_label: of the figure's axis; "" for a study without one.
    pixels: whether its networks are measured in pixels as well, a second space that must agree on an order.
    """

    title: str
    question: str
    entries: tuple[Entry, ...]
    teachers: tuple[Entry, ...]
    source: str = ""
    free: tuple[Freedom, ...] = ()
    x_label: str = ""
    pixels: bool = False

    @property
    def parts(self) -> Iterator[Entry]:
        """Teachers first: in the order of training."""
        yield from self.teachers
        yield from self.entries


def check_study(study: Study, folder: Path) -> None:
    """Rows that are compared share data, seed and teacher, and are measured where they keep weights.

    Raises ValueError naming two rows that do not agree, or a row that cannot be measured.

    Two teachers count as the same where they differ in the network alone (sCM's has pixel norm from the start).
    folder: where the study's runs are; a teacher elsewhere is a finished run of the user's.
    """
    names = [entry.name for entry in study.parts]
    if double := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"study {study.title!r} has two entries named {sorted(double)}: expected one run for a name")
    if not study.entries:
        raise ValueError(f"study {study.title!r} has no entries, expected at least one network to train")
    if lost := {entry.against for entry in study.entries} - {"", *(entry.name for entry in study.entries)}:
        raise ValueError(f"study {study.title!r} compares with {sorted(lost)}: expected names of its entries")
    if study.pixels and len({len(entry.at) for entry in study.entries}) > 1:
        raise ValueError(f"study {study.title!r} shows the course of its runs: expected as many clocks of each")
    first = study.entries[0]
    known = {str(folder / entry.name): entry.run for entry in study.teachers}
    for entry in study.entries:
        for what in ("data", "seed", "batch_size", *(() if "budget" in study.free else ("images",))):
            ours, theirs = getattr(first.run, what), getattr(entry.run, what)
            if ours != theirs:
                raise ValueError(
                    f"study {study.title!r}: {first.name!r} has {what} = {ours}, {entry.name!r} has {theirs}: rows "
                    f"that disagree in {what} cannot be compared"
                    + ', unless the study says free = ("budget",)'
                    * (what == "images")
                )
    _check_teachers(study, known)
    for entry in study.parts:
        _check_clocks(study, entry)
        try:
            check_network(entry.run)  # before the first of them is trained
        except ValueError as error:
            raise ValueError(f"study {study.title!r}, {entry.name!r}: {error}") from error


def _check_clocks(study: Study, entry: Entry) -> None:
    run = entry.run
    every, batch = run.every.ema_snapshots, run.batch_size
    end = -(-run.images // batch) * batch
    kept = [*range(every, end, every)] if every else []
    kept = sorted({-(-clock // batch) * batch for clock in kept} | ({end} if every else set()))
    if missing := sorted(set(entry.at) - set(kept)):
        raise ValueError(
            f"study {study.title!r}: {entry.name!r} is measured at images = {', '.join(map(str, missing))}, where its "
            f"run keeps no EMA snapshot: every.ema_snapshots = {every}, expected clocks among "
            f"{', '.join(map(str, kept)) or 'none'}"
        )


def _check_teachers(study: Study, known: dict[str, Run]) -> None:
    seen: tuple[str, Run] | None = None
    for entry in study.entries:
        if not isinstance(entry.run.teacher, FromRun):
            continue
        path = entry.run.teacher.path
        teacher = known.get(path) or (open_run(Path(path))[1] if (Path(path) / "run.json").exists() else None)
        if teacher is None:
            raise ValueError(
                f"study {study.title!r}: the teacher of {entry.name!r} is {path}, expected one of the study's "
                f"({', '.join(known) or 'none'}) or a run folder"
            )
        if teacher.data != entry.run.data:
            raise ValueError(
                f"study {study.title!r}: {entry.name!r} has data = {entry.run.data}, its teacher {path} was trained on "
                f"{teacher.data}: expected the same"
            )
        if seen is None:
            seen = (entry.name, teacher)
        elif "teacher" not in study.free and (differ := _unequal(teacher, seen[1])):
            raise ValueError(
                f"study {study.title!r}: the teachers of {seen[0]!r} and {entry.name!r} differ in {', '.join(differ)}: "
                'rows with unequal teachers cannot be compared, unless the study says free = ("teacher",)'
            )


def _unequal(one: Run, other: Run) -> list[str]:
    names = ("data", "objective", "images", "batch_size", "optimizer", "ema", "seed")
    return [name for name in names if getattr(one, name) != getattr(other, name)]

"""The teacher that a trained network was distilled from, to sample beside it."""

from __future__ import annotations

import dataclasses

from facm.core.objective import as_objective
from facm.flow.guidance import Guidance
from facm.flow.velocity import guidance_of
from facm.pretrained.trained import Trained
from facm.runs.config import teacher_of
from facm.runs.folder import open_run
from facm.sampling.source import Source


def has_teacher(trained: Trained) -> bool:
    """Whether it is of a run that was distilled."""
    return trained.path.is_dir() and open_run(trained.path)[1].teacher is not None


def teacher_of_trained(trained: Trained, source: Source) -> tuple[Source, Guidance]:
    """What it learned from, called as ``source`` is, and how that was guided. Raises ValueError for a run without a
    teacher, and for a file."""
    from facm.foundation.experts.pair import TrainedPair, teacher_of_pair

    if isinstance(trained, TrainedPair):
        of_both, guidance = teacher_of_pair(trained)
        return dataclasses.replace(source, network=of_both), guidance
    if not has_teacher(trained):
        raise ValueError(f"{trained.path} has no teacher, expected the run of a student")
    _, run = open_run(trained.path)
    network = teacher_of(run, source.network, source.device)
    return dataclasses.replace(source, network=network), guidance_of(as_objective(run.objective).velocity)

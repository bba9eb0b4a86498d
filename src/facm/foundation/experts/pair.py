"""A pair of students, each of which learned the times of one expert, as one network that is sampled phase by phase."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from facm.core.objective import as_objective
from facm.flow.guidance import Guidance
from facm.flow.two_experts import TwoScales, just_above
from facm.flow.velocity import guidance_of
from facm.foundation.experts.students import student_with
from facm.foundation.experts.switch import TwoExperts
from facm.foundation.folder import VAE, open_model
from facm.foundation.network import DiffusersModel
from facm.pretrained.trained import Trained
from facm.runs.config import teacher_of
from facm.runs.folder import open_run


@dataclass(frozen=True)
class TrainedPair(Trained):
    """Two halves as one: the fields are those of the low-noise half, with a network that asks both.

    low, high: the halves by themselves.
    """

    low: Trained | None = None
    high: Trained | None = None


def pair_of(low: Trained, high: Trained) -> TrainedPair:
    """Both as one network, whose interface has the bounds of two phases.

    Fine-tuned experts are a pair, too, and meet where those of their model do. Raises ValueError where either is not
    the half that it should be, where they do not meet, and for halves of different models or data, or that are called
    differently.
    """
    _check_half(low, "", "low", low.interface.bounds[0] > 0 and low.interface.bounds[-1] == 1)
    _check_half(high, "high_noise = ", "high", high.interface.bounds[0] == 0 and high.interface.bounds[-1] < 1)
    t_b, ends = low.interface.bounds[0], high.interface.bounds[-1]
    if t_b != ends:
        raise ValueError(
            f"high_noise = {high.path} jumps to t = {ends:g}, and {low.path} begins at t = {t_b:g}; expected halves of "
            "one boundary"
        )
    if high.interface.task != low.interface.task or tuple(high.dataset.shape[:1]) != tuple(low.dataset.shape[:1]):
        raise ValueError(
            f"high_noise = {high.path} and {low.path} are called differently, or make samples of other channels; "
            "expected halves of one model"
        )
    few_step = low.interface.learns_shortcut
    if few_step != high.interface.learns_shortcut:
        distilled, tuned = (low, high) if few_step else (high, low)
        raise ValueError(
            f"{distilled.path} was distilled and {tuned.path} fine-tuned, expected both halves from facm distill, or "
            "both from facm finetune"
        )
    _check_models(low, high)
    network = TwoExperts(high.network, low.network, just_above(1 - t_b) if few_step else 1 - t_b)
    bounds = (*high.interface.bounds, *low.interface.bounds[1:])
    which = f"{low.which}, and {high.which} of {high.path} (sha256 {high.checkpoint_sha256[:16]})"
    fields = {name: getattr(low, name) for name in Trained.__dataclass_fields__}
    fields |= {"network": network.eval(), "interface": replace(low.interface, bounds=bounds), "which": which}
    return TrainedPair(**fields, low=low, high=high)


def check_whole(trained: Trained) -> None:
    """Raise ValueError for half of a pair, which is not sampled alone."""
    if not trained.interface.knows_all_times:
        raise ValueError(
            f"{trained.path} is {student_with(trained.interface.bounds)}, which makes no samples alone; expected the "
            "run of the low-noise half, with high_noise = the run of the high-noise half"
        )


def teacher_of_pair(pair: TrainedPair) -> tuple[Any, Guidance]:
    """What both halves learned from: F(x, t, cond) of their teachers, each at its times, and how they were guided."""
    assert pair.low is not None
    assert pair.high is not None
    device = next(pair.network.parameters()).device
    high, scale = _teacher(pair.high, device)
    low, scale_2 = _teacher(pair.low, device)
    boundary = 1 - pair.low.interface.bounds[0]
    return TwoExperts(high, low, boundary), TwoScales(scale, scale_2=scale_2, boundary=boundary)


def _teacher(half: Trained, device: torch.device) -> tuple[Any, float]:
    """What half of a pair learned from, and with which guidance. Raises ValueError for a run without a teacher."""
    _, run = open_run(half.path)
    teacher = teacher_of(run, half.network, device)
    if teacher is None:
        raise ValueError(f"{half.path} has no teacher, expected a run of facm distill")
    return teacher, guidance_of(as_objective(run.objective).velocity).strongest


def _check_half(trained: Trained, argument: str, name: str, right: bool) -> None:
    if not right:
        raise ValueError(
            f"{argument}{trained.path} is {student_with(trained.interface.bounds)}, expected the {name}-noise half of "
            f"a pair, as facm distill --student {name}-noise or facm finetune --expert {name}-noise trains it"
        )


def _check_models(low: Trained, high: Trained) -> None:
    """Raise ValueError where the halves belong to models with other autoencoders or text encoders, or to one part."""
    configs = low.config, high.config
    if not all(isinstance(config, DiffusersModel) for config in configs):
        return
    first, second = (config for config in configs if isinstance(config, DiffusersModel))
    if first.part == second.part:
        raise ValueError(f"high_noise = {high.path} and {low.path} are both of {first.part}, expected one of each")
    if first.path != second.path:
        models = [open_model(Path(config.path).expanduser()) for config in (first, second)]
        ours, theirs = (model.identity(*model.encoders, VAE) for model in models)
        if ours != theirs:
            raise ValueError(
                f"high_noise = {high.path} is of the model {second.path}, {low.path} of {first.path}, with another "
                "VAE or text encoder; expected halves of one model"
            )

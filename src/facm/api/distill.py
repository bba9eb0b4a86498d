"""facm.distill: a few-step student of a network that somebody has trained already, wherever and with whatever."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from facm.api.convention import Convention, arguments_of, clearest, measured, stated
from facm.api.session import Tracker
from facm.api.train import train
from facm.core.component import shown
from facm.core.modules import unwrapped
from facm.core.objective import Condition
from facm.core.terminal import say
from facm.core.types import Batch, Data, Dataset, NetworkConfig
from facm.data.checked import first_indices, read_checked
from facm.data.given import Item, given_data
from facm.distributed.engine import Engine
from facm.distributed.process_group import announced
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.networks.adapters.variance_preserving import VariancePreserving
from facm.networks.given import given_network
from facm.objectives.facm import FACM
from facm.pretrained.given import given_weights
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals, Pretrained, Run
from facm.runs.ema import PowerEMA
from facm.runs.folder import open_run
from facm.runs.optim import AdamW
from facm.training.callbacks import AsCallback

if TYPE_CHECKING:
    from facm.api.model import Model

IMAGES, BATCH_SIZE = 100_000, 128
LOOKED_AT, MOST_LOOKED_AT, NUMBERS = 64, 2048, 2**15
"""Samples on which a network's convention is measured: at least and at most, so many that they have NUMBERS numbers."""


def distill(
    network: Any,
    data: Any = None,
    out: str | os.PathLike[str] = "runs/student",
    *,
    images: int | None = None,
    batch_size: int | None = None,
    lr: float = 1e-4,
    warmup_images: int | None = None,
    guidance_scale: float = 1.0,
    classes: int | None = None,
    condition: Condition | None = None,
    item: Item | None = None,
    noise_at: float | None = None,
    time_scale: float | None = None,
    predicts: str = "velocity",
    input_name: str = "",
    time_name: str = "",
    cond_name: str | None = None,
    every: Intervals | None = None,
    ema: Sequence[float] = (0.05, 0.2),
    objective: Any = None,
    seed: int = 0,
    resume: bool = False,
    callbacks: Sequence[AsCallback] = (),
    trackers: Sequence[Tracker] = (),
    device: str = "auto",
    engine: Engine | None = None,
    quiet: bool = False,
    **options: Any,
) -> Model:
    """Distil ``network``, which has learned a flow, into a student of one or a few steps, in the new folder ``out``.

    >>> import torch, facm
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
    ...     def forward(self, x, t):
    ...         return self.layers(torch.cat([x, t[:, None]], dim=1))
    >>> net, data = Net(), torch.randn(256, 2)
    >>> student = facm.distill(net, data, "runs/plain", images=256, noise_at=0, time_scale=1, quiet=True)
    >>> student.sample(5).shape
    torch.Size([5, 2])

    network: a trained nn.Module that predicts a velocity, or noise; the folder of a run; or a text-to-image model of
        diffusers, as its folder or as an opened pipeline, with ``data`` the folder that ``facm prepare`` wrote.
    data: what it was trained on, scaled as then: a map-style ``torch.utils.data.Dataset``, a ``datasets.Dataset``, a
        tensor (N, ...), a pair of samples and labels, a list, or data of this package. Samples have any shape, all the
        same: (C, H, W), (C, L), (C, F, H, W), (D,).
    images: length of the run in samples seen; None: 100,000, of a pipeline its recipe's.
    batch_size: None: 128. lr, warmup_images (None: a twentieth of the run), every,
        ema, seed: as in :class:`facm.Run`.
    guidance_scale: guidance of the teacher that the student learns; above 1 the network must know a null label, which
        is the number of classes.
    classes: number of classes of integer labels; None: as the data say it, and none where the network takes no
        condition. condition: what the network is conditioned on, where it is neither labels nor nothing.
    item: turns an item of ``data`` into x or (x, condition).
    noise_at, time_scale: the network's time at noise (0, or time_scale) and its range; None: measured on a few samples,
        and said. predicts: "velocity", or "noise" of a DDPM with a linear schedule of 1000 timesteps.
    input_name, time_name, cond_name: arguments of the network; found by their usual names unless given.
    objective: in place of the default facm.FACM(condition, facm.TeacherVelocity(...)).
    resume: go on where ``out`` holds this very run already. callbacks, trackers, device, engine, quiet: as for
        :func:`facm.train`. options: of the recipe, for a text-to-image model.
    Raises ValueError naming the argument, its value and what was expected, and what :func:`facm.train` raises.
    """
    conduct: dict[str, Any] = {"resume": resume, "callbacks": callbacks, "trackers": trackers}
    conduct |= {"device": device, "engine": engine, "quiet": quiet}
    model = pipeline_folder(network)
    if model is not None:
        given = {"images": images, "batch_size": batch_size, "lr": lr, "seed": seed, **options}
        given |= {"guidance_scale": guidance_scale} if guidance_scale != 1 else {}
        return train(run_of_pipeline(model, data, given), out, **conduct)
    images, batch_size = images or IMAGES, batch_size or BATCH_SIZE
    if options:
        raise ValueError(f"{next(iter(options))} is no argument of facm.distill for a network")
    if isinstance(network, str | os.PathLike):
        config, source, found, chosen = _of_run(Path(network), data, classes, item)
    else:
        names = names_of(network, input_name, time_name, cond_name)
        labels = bool(names[2])
        found = given_data(data, classes if labels else None, item, labels)
        dataset = found.open()
        own = given_network(network)
        if predicts == "noise":
            inner = Convention(0.0, 1.0, *names).adapted(own)
            config = VariancePreserving(inner)
        elif predicts == "velocity":
            convention = convention_of(network, dataset, names, noise_at, time_scale, quiet)
            config = convention.adapted(own)
        else:
            raise ValueError(f"predicts = {predicts!r}, expected 'velocity' or 'noise'")
        source = given_weights(config)
        chosen = condition_of(dataset, names)
    run = Run(
        config,
        found,
        objective or FACM(condition or chosen, TeacherVelocity(Guidance(guidance_scale))),
        images,
        batch_size,
        AdamW(lr=lr, warmup_images=images // 20 if warmup_images is None else warmup_images),
        PowerEMA(tuple(ema)),
        teacher=source,
        initial=source,
        every=every or Intervals(log=max(batch_size, images // 50), checkpoint=max(batch_size, images // 10)),
        seed=seed,
    )
    return train(run, out, **conduct)


def pipeline_folder(network: Any) -> Path | None:
    """The folder of a diffusers pipeline, given as a path or as the opened pipeline; None for anything else."""
    if isinstance(network, str | os.PathLike):
        return Path(network) if (Path(network) / "model_index.json").exists() else None
    if not (hasattr(network, "components") and hasattr(network, "config")):
        return None
    folder = Path(str(getattr(network, "name_or_path", "") or network.config.get("_name_or_path", "")))
    if not (folder / "model_index.json").exists():
        raise ValueError(
            f"network = a {type(network).__name__} that was not opened from a folder, expected one that was, for its "
            "weights are read from there: pipe.save_pretrained(folder), then facm.distill(folder, ...)"
        )
    return folder


def run_of_pipeline(model: Path, data: Any, given: dict[str, Any]) -> Run:
    """The recipe's run; what is None is its default. guidance_scale: 1 says nothing, for the data say how their model
    is asked."""
    from facm.recipes import text_to_image

    if not isinstance(data, str | os.PathLike):
        raise ValueError(
            f"data = {shown(data)} with a text-to-image model, expected the folder that facm prepare wrote with it"
        )
    said = {name: value for name, value in given.items() if value is not None}
    return text_to_image.distill(str(model), str(data), **said)


def _of_run(
    path: Path, data: Any, classes: int | None, item: Item | None
) -> tuple[NetworkConfig, Pretrained, Data, Condition]:
    """A student of another run: of its network, with its data unless others are given, under its condition."""
    _, run = open_run(path)
    condition = getattr(run.objective, "condition", None)
    if condition is None:
        raise ValueError(f"{path} does not say what its network is conditioned on: expected condition = ...")
    found = run.data if data is None else given_data(data, classes, item)
    return run.network, FromRun(str(path)), found, condition


def names_of(network: Any, input_name: str, time_name: str, cond_name: str | None) -> tuple[str, str, str]:
    network = unwrapped(network)
    if not isinstance(network, torch.nn.Module):
        raise ValueError(
            f"network = {shown(network)}, expected a trained torch.nn.Module, the folder of a run, or a pipeline"
        )
    return arguments_of(network, input_name, time_name, cond_name)


def condition_of(dataset: Dataset, names: tuple[str, str, str]) -> Condition:
    if dataset.num_classes is not None:
        return Labels(dataset.num_classes)
    cond = read_checked(dataset, np.arange(1)).cond
    if cond is not None:
        raise ValueError(
            f"data: items have a condition that is no label, for the network's argument {names[2]!r}, and condition = "
            "None: expected condition, an object of facm.core.objective.Condition with its null, or cond_name = ''"
        )
    return Unconditional()


def looked_at(dataset: Dataset) -> Batch:
    """The samples on which a network's convention is measured."""
    n = min(max(LOOKED_AT, NUMBERS // math.prod(dataset.shape)), MOST_LOOKED_AT)
    return read_checked(dataset, first_indices(dataset, n))


def convention_of(
    network: Any,
    dataset: Dataset,
    names: tuple[str, str, str],
    noise_at: float | None,
    time_scale: float | None,
    quiet: bool,
) -> Convention:
    """As it is given, or as it is measured."""
    if (said := stated(noise_at, time_scale, names)) is not None:
        return said
    batch = looked_at(dataset)
    convention = clearest(errors := measured(unwrapped(network), batch, names))
    if not quiet and announced().first:
        least, second = (f"{float(error.mean()):.2f}" for error in list(errors.values())[:2])
        say(f"measured convention: {convention}; error {least} of the velocity's, the next one's {second}")
    return convention

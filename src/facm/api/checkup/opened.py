"""From what the user gives to what is looked at: a module, a component, a run, its folder, a file, or a pipeline."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facm.api.checkup.convention import DDPM, VELOCITY, Guess, convention_found, guesses, known_convention
from facm.api.checkup.finding import Finding
from facm.api.checkup.subject import Subject
from facm.api.convention import Convention, cannot_be_called, stands_out, stated
from facm.api.distill import LOOKED_AT, condition_of, looked_at, names_of, pipeline_folder, run_of_pipeline
from facm.core.component import shown
from facm.core.cond import taken
from facm.core.modules import unwrapped
from facm.core.objective import NetworkInterface, as_objective, guidance_scale
from facm.core.types import Batch, Data, Dataset, NetworkConfig
from facm.data.given import Item, given_data
from facm.data.noise import Noise
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import Guidance
from facm.flow.time_conditioning import ExpandedInterval
from facm.flow.velocity import TeacherVelocity
from facm.networks.adapters.variance_preserving import VariancePreserving
from facm.networks.given import given_network
from facm.objectives.facm import FACM
from facm.pretrained.trained import Trained
from facm.runs.config import Run
from facm.runs.folder import open_run


@dataclass(frozen=True)
class Asked:
    """What :func:`facm.check` is told, by its arguments' names."""

    data: Any = None
    shape: tuple[int, ...] = ()
    classes: int | None = None
    condition: Any = None
    item: Item | None = None
    noise_at: float | None = None
    time_scale: float | None = None
    predicts: str = "velocity"
    input_name: str = ""
    time_name: str = ""
    cond_name: str | None = None
    guidance_scale: float = 1.0
    batch_size: int = 128
    seed: int = 0
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    ema: float | None = None
    trust_recipe: bool = False


def opened(network: Any, asked: Asked) -> tuple[Subject, Finding]:
    """The network as it is looked at, and the finding about its convention.

    Raises ValueError for anything that is no network, and where neither data nor a shape are given.
    """
    if isinstance(network, Run):
        return _of_run(network, "run", asked)
    folder = pipeline_folder(network)
    if folder is not None:
        if asked.data is None:
            raise ValueError(f"data = None with the pipeline {folder}, expected the folder that facm prepare wrote")
        return _of_run(run_of_pipeline(folder, asked.data, {}), f"{folder} (pipeline)", asked)
    if isinstance(network, str | os.PathLike):
        return _of_path(Path(network), asked)
    if isinstance(unwrapped(network), nn.Module):
        return _of_module(network, asked)
    if isinstance(network, NetworkConfig) and not isinstance(network, type):
        return _of_config(network, asked)
    raise ValueError(
        f"network = {shown(network)}, expected a torch.nn.Module, a network's configuration, a Run, the folder of a "
        "run or a pipeline, or a file of weights"
    )


def _of_module(network: Any, asked: Asked) -> tuple[Subject, Finding]:
    names = names_of(network, asked.input_name, asked.time_name, asked.cond_name)
    module = unwrapped(network)
    data, dataset = _data(asked, bool(names[2]))
    condition = asked.condition or condition_of(dataset, names)
    own = given_network(module)
    batch, noise = _drawn(dataset, asked)
    given = stated(asked.noise_at, asked.time_scale, names)
    if asked.data is None:
        convention = given or Convention(0.0, 1.0, *names)
        said = str(convention) if given else "taken for time from 0 (noise) to 1 (data)"
        finding = Finding("convention", "note", f"not measured, without data: {said}", "" if given else "data=...")
        best = Guess(convention)
    else:
        errors = guesses(own, batch, noise, names)
        finding, best = convention_found(errors, given, asked.predicts), next(iter(errors))
        if given is not None and not stands_out(errors):
            best = Guess(given)
        elif best.predicts not in (VELOCITY, DDPM):
            best = next(guess for guess in errors if guess.predicts == VELOCITY)  # the nearest that goes on from here
    config: NetworkConfig
    if best.predicts == DDPM or (asked.data is None and asked.predicts == "noise"):
        config = VariancePreserving(Convention(0.0, 1.0, *names).adapted(own))
    else:
        config = best.convention.adapted(own)
    interface = NetworkInterface(condition, ExpandedInterval())
    run = _run(config, data, condition, asked)
    subject = _subject(type(module).__name__, config.build(), module, interface, dataset, batch, noise, run, asked)
    _check_called(subject)
    return subject, finding


@torch.no_grad()
def _check_called(subject: Subject) -> None:
    """Raise ValueError for a network that fails at a time of its own, with what it was called with."""
    x_t, t = subject.point(0.5, 2)
    cond = taken(subject.batch.cond, slice(0, 2))
    try:
        subject.flow(cond)(x_t, t)
    except Exception as error:  # of the user's own forward
        raise cannot_be_called(subject.name, x_t, cond, error) from error


def _of_config(config: Any, asked: Asked) -> tuple[Subject, Finding]:
    data, dataset = _data(asked, True)
    batch, noise = _drawn(dataset, asked)
    condition = asked.condition or (Labels(dataset.num_classes) if dataset.num_classes else Unconditional())
    network = _awake(config.build(), asked.seed)
    interface = NetworkInterface(condition, ExpandedInterval())
    run = _run(config, data, condition, asked)
    subject = _subject(type(config).__name__, network, network, interface, dataset, batch, noise, run, asked)
    subject = dataclasses.replace(subject, has_learned=False)
    return subject, Finding("convention", "note", "this package's; its weights are random, so that nothing is measured")


def _awake(network: nn.Module, seed: int) -> nn.Module:
    """``network`` with random numbers in place of weights that begin at zero, behind which nothing would be seen."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            if value.ndim > 1 and not bool(value.any()):
                value.copy_(0.02 * torch.randn(value.shape, generator=rng))
    return network


def _of_run(run: Run, name: str, asked: Asked) -> tuple[Subject, Finding]:
    """The network that a run starts from."""
    objective = as_objective(run.objective)
    start = run.initial or run.teacher
    learned = start is not None or name.endswith("(pipeline)")
    loaded: Any = start.load() if start is not None and hasattr(start, "load") else run.network.build()
    dataset = run.data.open()
    batch, noise = _drawn(dataset, asked)
    interface = dataclasses.replace(objective.interface, learns_shortcut=False)
    scale = guidance_scale(objective.velocity)
    subject = _subject(name, loaded, loaded, interface, dataset, batch, noise, run, asked, scale)
    if not learned:
        _awake(subject.network, asked.seed)
        subject = dataclasses.replace(subject, has_learned=False)
        return subject, Finding("convention", "note", "this package's; the run starts from random weights")
    return subject, known_convention(subject)


def _of_path(path: Path, asked: Asked) -> tuple[Subject, Finding]:
    from facm.api.model import load

    if not path.exists():
        raise ValueError(f"network = {str(path)!r}: there is no such file or folder")
    trained: Trained = load(path, ema=asked.ema, trust_recipe=asked.trust_recipe, device="cpu").trained
    run = open_run(path)[1] if path.is_dir() else None
    with_data = len(trained.dataset) > 0 or asked.data is not None
    if asked.data is not None:
        _, dataset = _data(asked, True)
    else:
        dataset = trained.dataset if with_data else _noise_like(trained.dataset)
    batch, noise = _drawn(dataset, asked)
    scale = 1.0 if run is None else guidance_scale(as_objective(run.objective).velocity)
    subject = _subject(
        str(path), trained.network, trained.network, trained.interface, dataset, batch, noise, run, asked, scale
    )
    subject = dataclasses.replace(subject, has_data=with_data, is_teacher=not trained.interface.learns_shortcut)
    if not with_data:
        return subject, Finding("convention", "note", "as the file says; not measured, without data", "data=...")
    return subject, known_convention(subject)


def _noise_like(dataset: Dataset) -> Dataset:
    return Noise(tuple(dataset.shape), dataset.num_classes).open()


def _data(asked: Asked, labels: bool) -> tuple[Data, Dataset]:
    """The data as a configuration, and opened; noise of the shape where there are none."""
    if asked.data is not None:
        found = given_data(asked.data, asked.classes if labels else None, asked.item, labels)
        return found, found.open()
    if not asked.shape:
        raise ValueError(
            "neither data nor shape are given: expected data, what the network was trained on, or at least shape, that "
            "of one sample, such as (3, 32, 32)"
        )
    made = Noise(asked.shape, asked.classes)
    return made, made.open()


def _drawn(dataset: Dataset, asked: Asked) -> tuple[Any, torch.Tensor]:
    """A batch and its noise, on the device."""
    if len(dataset) == 0:
        raise ValueError("data: there are no samples here; expected data=")
    batch = looked_at(dataset)
    noise = torch.randn(batch.x_1.shape, generator=torch.Generator().manual_seed(asked.seed))
    return batch.to(asked.device), noise.to(asked.device)


def _run(config: NetworkConfig, data: Data, condition: Any, asked: Asked) -> Run:
    """The run by which a student would be distilled, as facm.distill makes it but for its length."""
    from facm.pretrained.given import given_weights

    source = given_weights(config)
    scale = asked.guidance_scale if not isinstance(condition, Unconditional) else 1.0
    objective = FACM(condition, TeacherVelocity(Guidance(scale)))
    return Run(config, data, objective, 1_000_000, asked.batch_size, teacher=source, initial=source)


def _subject(
    name: str,
    network: nn.Module,
    inner: nn.Module,
    interface: NetworkInterface,
    dataset: Dataset,
    batch: Any,
    noise: torch.Tensor,
    run: Run | None,
    asked: Asked,
    scale: float | None = None,
) -> Subject:
    network = network.to(asked.device).eval().requires_grad_(False)
    has_data = asked.data is not None or (run is not None and not isinstance(run.data, Noise))
    guided = asked.guidance_scale if scale is None else scale
    few = Batch(batch.x_1[:LOOKED_AT], taken(batch.cond, slice(0, LOOKED_AT)))
    x_0 = noise[:LOOKED_AT]
    return Subject(name, network, inner, interface, dataset, few, batch.x_1, has_data, run, guided, x_0, asked.device)

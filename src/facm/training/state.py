"""All that moves during a run, to and from checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from facm.core.rng import global_random_state, set_global_random_state
from facm.core.serialize import fingerprint
from facm.core.state_dict import CheckpointError, check_fits
from facm.distributed.collectives import by_first, from_first, gathered
from facm.distributed.process_group import ALONE, World
from facm.pretrained.trained import one_before, open_newest
from facm.runs.checkpointer import Stored, directory_of, remove, save
from facm.runs.config import Run
from facm.runs.ema import EMA
from facm.runs.folder import RunFolder
from facm.runs.self_teacher import SelfTeacher
from facm.training.finite import NonFiniteError, check_finite_state
from facm.training.window import Window


@dataclass
class Skips:
    """Steps that were skipped because their gradient was not finite, counted on the device.

    total: () int64, all of them.
    in_a_row: () int64, the newest ones without a good step after them.
    longest: () int64, the most in a row since the count was last looked at.
    last: () int64, the clock of the newest.
    """

    total: Tensor
    in_a_row: Tensor
    longest: Tensor
    last: Tensor

    @staticmethod
    def none(device: torch.device) -> Skips:
        return Skips(*(torch.zeros((), dtype=torch.int64, device=device) for _ in range(4)))

    def add(self, skipped: Tensor, images: int) -> None:
        """``skipped`` () bool: whether the step that ended at ``images`` was skipped."""
        self.total += skipped
        self.in_a_row = torch.where(skipped, self.in_a_row + 1, 0)
        self.longest = torch.maximum(self.longest, self.in_a_row)
        self.last = torch.where(skipped, images, self.last)


@dataclass
class TrainState:
    """All that moves during a run; a checkpoint is this and nothing else.

    network: the network itself.
    optimizer: over its parameters.
    ema: its running averages.
    wrapped: what losses are computed through: the network, or DDP around it.
    skips: counts of skipped steps.
    self_teacher: the average of the network that the objective's targets ask, or None.
    world: the ranks that train together.
    data: fingerprint of the data set, where it has one.
    images: clock, in images seen.
    steps: optimiser steps, skipped ones included.
    window: what the next line of the log will say.
    """

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    wrapped: torch.nn.Module
    skips: Skips
    self_teacher: SelfTeacher | None = None
    world: World = ALONE
    data: str | None = None
    images: int = 0
    steps: int = 0
    window: Window = field(default_factory=Window)

    def weights(self) -> dict[str, Tensor]:
        """Network and averages by their names in a checkpoint, sharing their memory."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for sigma_rel, average in self.ema.averages.items():
            tensors |= {f"ema/{sigma_rel}/{name}": value for name, value in average.items()}
        if self.self_teacher is not None:
            averaged = self.self_teacher.network.state_dict()
            tensors |= {f"self_teacher/{name}": value for name, value in averaged.items()}
        return tensors

    def weights_and_moments(self) -> dict[str, Tensor]:
        """As :meth:`weights`, and what the optimiser keeps of each parameter."""
        tensors = self.weights()
        for index, entries in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in entries.items()}
        return tensors

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors, and a record of everything else. All ranks call this together."""
        rng_tensors, rng_meta = from_first(self.world, global_random_state())
        tensors = self.weights_and_moments()
        tensors |= {f"window/{name}": value for name, value in _of_all_ranks(self.window, self.world).items()}
        tensors |= {f"rng/{name}": value for name, value in rng_tensors.items()}
        meta = {
            "images": self.images,
            "steps": self.steps,
            "skipped": int(self.skips.total),
            "skipped_in_a_row": int(self.skips.in_a_row),
            "window": self.window.count,
            "data": self.data,
            "rng": rng_meta,
        }
        return tensors, meta

    def load_state_dict(self, saved: Stored) -> None:
        """Take over a checkpoint. Raises CheckpointError for another network, or another optimiser's state."""
        shapes = {name: saved.shapes[f"network/{name}"][0] for name in saved.names("network")}
        check_fits(self.network, shapes, str(saved.path))
        with torch.no_grad():
            saved.fill(self.weights())
            _restore_optimizer(self.optimizer, saved)
        self.images, self.steps = int(saved.meta["images"]), int(saved.meta["steps"])
        self.skips.total.fill_(int(saved.meta["skipped"]))
        self.skips.in_a_row.fill_(int(saved.meta["skipped_in_a_row"]))
        device = next(self.network.parameters()).device
        self.window = Window.of(_of_this_rank(saved, self.world, device), int(saved.meta["window"]))
        set_global_random_state(saved.part("rng"), saved.meta["rng"])


def save_checkpoint(state: TrainState, run: Run, folder: RunFolder, teacher: dict[str, str] | None) -> None:
    """Save everything, then remove what ``run.every.keep`` no longer keeps. All ranks call this together.

    Raises NonFiniteError, and neither writes nor removes anything, where weights, averages or moments are not finite.
    """
    loader = {"position": state.images, "seed": run.seed}
    file = folder.checkpoint(state.images)
    kept = [path.name for path in folder.checkpoints()]
    last = f"the newest checkpoint is {kept[-1]}" if kept else "there is no checkpoint before"
    what = f"nothing was saved at {state.images} images, {last}"
    check_finite_state(state.weights_and_moments(), state.network, state.world, what)
    tensors, meta = state.state_dict()
    record = {**meta, "loader": loader, "run": fingerprint(run), "teacher": teacher}
    written = save(file, tensors, record, state.world)

    def remove_old() -> None:
        for twin in {file, directory_of(file)} - {written}:  # the same clock, saved by another engine
            remove(twin)
        _keep_newest(run, folder)

    by_first(state.world, remove_old)


def _keep_newest(run: Run, folder: RunFolder) -> None:
    for old in folder.checkpoints()[: -run.every.keep]:
        remove(old)


def restore(state: TrainState, run: Run, folder: RunFolder, teacher: dict[str, str] | None) -> None:
    """Continue from the newest checkpoint, if there is one.

    Raises CheckpointError for the checkpoint of another run, teacher, data set or network, NonFiniteError for a network
    that does not begin with finite weights.
    """
    if not folder.checkpoints():
        what = f"network = {run.network} does not begin with finite weights"
        check_finite_state(state.weights(), state.network, state.world, what)
        return
    saved = open_newest(folder, run, state.world)
    source = str(saved.path)
    before = saved.meta.get("teacher")
    if before != teacher and (before or {}).get("sha256") != (teacher or {}).get("sha256"):
        raise CheckpointError(
            f"{source} was trained with the teacher {before}, and the teacher is now {teacher}: "
            "a student cannot change its teacher halfway; restore the teacher's files, or start a new run"
        )
    if saved.meta.get("data") not in (None, state.data):
        raise CheckpointError(
            f"{source} was trained on data with the fingerprint {saved.meta['data']}, and the data are now "
            f"{state.data}: restore them, or start a new run; class folders named by numbers are in the order of the "
            "numbers, and were in that of their text (0, 1, 10, 2) in versions before: a classes.txt beside them with "
            "the names in that order restores it"
        )
    try:
        state.load_state_dict(saved)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{source} does not hold the state of a run ({type(error).__name__}: {error})") from error
    try:
        what = f"{source} cannot be gone on from"
        check_finite_state(state.weights_and_moments(), state.network, state.world, what)
    except NonFiniteError as error:  # written by an earlier version
        raise CheckpointError(f"{error}; {one_before(saved.path, folder)}") from error
    by_first(state.world, lambda: _keep_newest(run, folder))  # where a kill came between saving and removing


def save_ema_snapshots(state: TrainState, run: Run, folder: RunFolder) -> None:
    """Keep the averages of this moment, from which other lengths can be synthesised.

    Raises NonFiniteError, writing none, where one of them is not finite.
    """
    check_finite_state(state.weights(), state.network, state.world, f"no averages were kept at {state.images} images")
    for sigma_rel, average in state.ema.averages.items():
        meta = {"images": state.images, "sigma_rel": sigma_rel, "run": fingerprint(run)}
        save(folder.ema_snapshot(state.images, sigma_rel), average, meta, state.world)


def _of_all_ranks(window: Window, world: World) -> dict[str, Tensor]:
    """The sums: (), or (ranks,) where there are several."""
    if world.ranks == 1:
        return window.flat()
    sums = window.flat()
    rows = gathered(world, {name: float(value) for name, value in sums.items()})
    return {name: torch.tensor([row[name] for row in rows], dtype=value.dtype) for name, value in sums.items()}


def _of_this_rank(saved: Stored, world: World, device: torch.device) -> dict[str, Tensor]:
    """The window's sums as this rank left them; after a change of the number of ranks, their average."""
    sums = {}
    for name, value in saved.part("window").items():
        mine = value if value.ndim == 0 else value[world.rank] if len(value) == world.ranks else value.mean()
        sums[name] = mine.to(device)
    return sums


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: Stored) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key in saved.names("optimizer"):
        index, _, name = key.partition("/")
        if int(index) >= len(parameters):
            raise CheckpointError(f"{saved.path}: its optimiser state has other parameters than this run's")
        shape, dtype = saved.shapes[f"optimizer/{key}"]
        like = parameters[int(index)]
        moment = name != "step" and shape == like.shape  # sharded as the parameter is
        entries.setdefault(int(index), {})[name] = (
            torch.zeros_like(like, dtype=dtype) if moment else torch.zeros(shape, dtype=dtype)
        )
    saved.fill({f"optimizer/{i}/{name}": value for i, named in entries.items() for name, value in named.items()})
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})

"""All that moves during a run, to and from checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from facm.core.rng import _global_random_state, _set_global_random_state
from facm.core.serialize import fingerprint, is_fingerprint_of
from facm.core.state_dict import CheckpointError, check_fits
from facm.distributed.collectives import by_first, from_first, gathered
from facm.distributed.process_group import ALONE, World
from facm.pretrained.trained import open_newest
from facm.runs.checkpointer import Stored, directory_of, remove, save
from facm.runs.config import Run
from facm.runs.ema import EMA
from facm.runs.folder import RunFolder


@dataclass
class Window:
    """Sums since the last record, kept on the device until they are asked for."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, total: Tensor, terms: Mapping[str, Tensor], grad_norm: Tensor) -> None:
        now = {"loss": total.detach(), **{name: value.mean() for name, value in terms.items()}, "grad_norm": grad_norm}
        sums = {name: self.sums[name] + value if name in self.sums else value for name, value in now.items()}
        self.sums = sums | {name: value for name, value in self.sums.items() if name not in sums}  # in the step's order
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: float(value) / self.count for name, value in self.sums.items()}

    def rate(self, batch_size: int) -> float:
        return self.count * batch_size / max(time.monotonic() - self.began, 1e-9)


@dataclass
class State:
    """All that moves during a run; a checkpoint is this and nothing else.

    wrapped: what losses are computed through, the network itself unless data parallelism wraps it. world: the ranks.
    data: the data set's fingerprint, where it has one.
    """

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    wrapped: torch.nn.Module
    world: World = ALONE
    images: int = 0
    data: str | None = None
    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    window: Window = field(default_factory=Window)


def checkpoint(state: State, run: Run, folder: RunFolder, teacher: dict[str, str] | None) -> None:
    """Save everything, then let go of what ``run.every.keep`` no longer keeps. All ranks call this together."""
    rng_tensors, rng_meta = from_first(state.world, _global_random_state())
    tensors = _weights(state)
    for index, entries in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in entries.items()}
    tensors |= {f"window/{name}": value for name, value in _of_all_ranks(state.window, state.world).items()}
    tensors |= {f"rng/{name}": value for name, value in rng_tensors.items()}
    meta = {
        "images": state.images,
        "steps": state.steps,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "window": state.window.count,
        "loader": {"position": state.images, "seed": run.seed},
        "run": fingerprint(run),
        "teacher": teacher,
        "data": state.data,
        "rng": rng_meta,
    }
    file = folder.checkpoint(state.images)
    written = save(file, tensors, meta, state.world)

    def let_go() -> None:
        for twin in {file, directory_of(file)} - {written}:  # the same clock, saved by another engine
            remove(twin)
        for old in folder.checkpoints()[: -run.every.keep]:
            remove(old)

    by_first(state.world, let_go)


def _weights(state: State) -> dict[str, Tensor]:
    """Network and averages by their names in a checkpoint, sharing their memory."""
    tensors = {f"network/{name}": value for name, value in state.network.state_dict().items()}
    for sigma_rel, average in state.ema.averages.items():
        tensors |= {f"ema/{sigma_rel}/{name}": value for name, value in average.items()}
    return tensors


def _of_all_ranks(window: Window, world: World) -> dict[str, Tensor]:
    """The sums: (), or (ranks,) where there are several."""
    if world.ranks == 1:
        return window.sums
    rows = gathered(world, {name: float(value) for name, value in window.sums.items()})
    return {name: torch.tensor([row[name] for row in rows], dtype=value.dtype) for name, value in window.sums.items()}


def restore(state: State, run: Run, folder: RunFolder, teacher: dict[str, str] | None) -> None:
    """Continue from the newest checkpoint, if there is one. Raises CheckpointError if it is not this run's."""
    if not folder.checkpoints():
        return
    saved = open_newest(folder, state.world)
    source = str(saved.path)
    if not is_fingerprint_of(saved.meta.get("run"), run):
        raise CheckpointError(f"{source} belongs to another recipe than this run's; resume it in its own folder")
    if saved.meta["teacher"] != teacher and (saved.meta["teacher"] or {}).get("sha256") != (teacher or {}).get(
        "sha256"
    ):
        raise CheckpointError(
            f"{source} was trained with the teacher {saved.meta['teacher']}, and the teacher is now {teacher}: "
            "a student cannot change its teacher halfway; restore the teacher's files, or start a new run"
        )
    if saved.meta.get("data") not in (None, state.data):
        raise CheckpointError(
            f"{source} was trained on data with the fingerprint {saved.meta['data']}, and the data are now "
            f"{state.data}: restore them, or start a new run"
        )
    check_fits(state.network, {name: saved.shapes[f"network/{name}"][0] for name in saved.names("network")}, source)
    with torch.no_grad():
        saved.fill(_weights(state))
        _restore_optimizer(state.optimizer, saved)
    for name in ("images", "steps", "skipped", "skipped_in_a_row"):
        setattr(state, name, int(saved.meta[name]))
    device = next(state.network.parameters()).device
    state.window = Window(_of_this_rank(saved, state.world, device), int(saved.meta["window"]))
    _set_global_random_state(saved.part("rng"), saved.meta["rng"])


def _of_this_rank(saved: Stored, world: World, device: torch.device) -> dict[str, Tensor]:
    """The window's sums as this rank left them; of another number of ranks, their average."""
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


def save_ema_snapshots(state: State, folder: RunFolder) -> None:
    for sigma_rel, average in state.ema.averages.items():
        meta = {"images": state.images, "sigma_rel": sigma_rel}
        save(folder.ema_snapshot(state.images, sigma_rel), average, meta, state.world)

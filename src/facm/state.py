"""All that moves during a run, to and from checkpoints."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from facm.checkpoint import Checkpoint, CheckpointError, load_strictly, save
from facm.ema import EMA
from facm.record import RunFolder
from facm.run import Run, fingerprint
from facm.trained import load_newest


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
    """All that moves during a run; a checkpoint is this and nothing else."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    images: int = 0
    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    window: Window = field(default_factory=Window)


def checkpoint(state: State, run: Run, folder: RunFolder, teacher: dict[str, str] | None) -> None:
    """Save everything, then let go of what ``run.every.keep`` no longer keeps."""
    tensors = {f"network/{name}": value for name, value in state.network.state_dict().items()}
    for sigma_rel, average in state.ema.averages.items():
        tensors |= {f"ema/{sigma_rel}/{name}": value for name, value in average.items()}
    for index, entries in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in entries.items()}
    tensors |= {f"window/{name}": value for name, value in state.window.sums.items()}
    rng_tensors, rng_meta = _global_random_state()
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
        "rng": rng_meta,
    }
    save(folder.checkpoint(state.images), tensors, meta)
    for old in folder.checkpoints()[: -run.every.keep]:
        old.unlink()


def restore(state: State, run: Run, folder: RunFolder, teacher: dict[str, str] | None) -> None:
    """Continue from the newest checkpoint, if there is one. Raises CheckpointError if it is not this run's."""
    if not folder.checkpoints():
        return
    file, saved = load_newest(folder)
    source = str(file)
    if saved.meta.get("run") != fingerprint(run):
        raise CheckpointError(f"{source} belongs to another recipe than this run's; resume it in its own folder")
    if saved.meta["teacher"] != teacher and (saved.meta["teacher"] or {}).get("sha256") != (teacher or {}).get(
        "sha256"
    ):
        raise CheckpointError(
            f"{source} was trained with the teacher {saved.meta['teacher']}, and the teacher is now {teacher}: "
            "a student cannot change its teacher halfway; restore the teacher's files, or start a new run"
        )
    load_strictly(state.network, saved.part("network"), source)
    for sigma_rel, average in state.ema.averages.items():
        for name, value in saved.part(f"ema/{sigma_rel}").items():
            average[name].copy_(value)
    _restore_optimizer(state.optimizer, saved, source)
    for name in ("images", "steps", "skipped", "skipped_in_a_row"):
        setattr(state, name, int(saved.meta[name]))
    device = next(state.network.parameters()).device
    state.window = Window({n: v.to(device) for n, v in saved.part("window").items()}, int(saved.meta["window"]))
    _set_global_random_state(saved.part("rng"), saved.meta["rng"])


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: Checkpoint, source: str) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.part("optimizer").items():
        index, _, name = key.partition("/")
        entries.setdefault(int(index), {})[name] = value
    current = optimizer.state_dict()
    parameters = {index for group in current["param_groups"] for index in group["params"]}
    if entries and not entries.keys() <= parameters:
        raise CheckpointError(f"{source}: its optimiser state has other parameters than this run's")
    optimizer.load_state_dict({"state": entries, "param_groups": current["param_groups"]})


def save_ema_snapshots(state: State, folder: RunFolder) -> None:
    for sigma_rel, average in state.ema.averages.items():
        save(folder.ema_snapshot(state.images, sigma_rel), average, {"images": state.images, "sigma_rel": sigma_rel})


def _global_random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The global generators: this package draws from none of them, but a user's network or data may."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    tensors |= {"python": torch.tensor(internal, dtype=torch.int64)}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors, {"python": [version, gauss], "numpy": [name, int(position), int(has_gauss), float(cached)]}


@contextlib.contextmanager
def borrowed_generators(seed: int | None = None) -> Iterator[None]:
    """Borrow the global generators, seeded if asked for; afterwards they are as they were before."""
    before = _global_random_state()
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        yield
    finally:
        _set_global_random_state(*before)


def _set_global_random_state(tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    version, gauss = meta["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    name, position, has_gauss, cached = meta["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])

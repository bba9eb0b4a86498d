"""A small grid at every checkpoint, to look at while a run trains."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from facm.conditions import Labels, Unconditional
from facm.evaluation.evaluate import default_method
from facm.generate import Source, balanced_labels, sample
from facm.images import save_grid
from facm.run import Run
from facm.state import State
from facm.tasks import ExpandedInterval

PREVIEW = 20
TEACHER_NFE = 8


def draw_preview(state: State, run: Run, path: Path) -> None:
    """Samples of the first EMA, from the same noise every time; nothing for data that are not images, an objective
    that does not say how its network is asked, or conditions that cannot be made up."""
    objective: Any = run.objective
    condition = getattr(objective, "condition", None)
    shape = run.data.open().shape
    if not isinstance(condition, Labels | Unconditional) or len(shape) != 3 or shape[0] not in (1, 3):
        return
    network = copy.deepcopy(state.network).eval()
    network.load_state_dict(state.ema.averages[run.ema.sigma_rels[0]])
    device = next(network.parameters()).device
    source = Source(
        network, getattr(objective, "task", None) or ExpandedInterval(), condition, shape, torch.device(device)
    )
    method = default_method(run, 1)
    if method.nfe == 1 and type(method).__name__ == "Euler":
        method = default_method(run, TEACHER_NFE)
    indices = range(PREVIEW)
    save_grid(path, sample(source, method, indices, balanced_labels(condition, indices)))

"""Grids of samples that are compared in a report: every network draws the same noise with the same labels."""

from __future__ import annotations

import torch

from facm.pretrained.trained import Trained
from facm.sampling.generate import sample_balanced
from facm.sampling.methods import Method
from facm.studies.html import Panel, steps
from facm.studies.train_and_measure import SEED_OF_EVALUATION

SHOWN = 40


def panel_of(name: str, trained: Trained, method: Method, device: torch.device) -> Panel:
    """The first samples of ``trained``, under a caption such as "student, 1 step"."""
    x = sample_balanced(trained.source(device), method, SHOWN, SEED_OF_EVALUATION)
    return Panel(f"{name}, {steps(method.nfe)}", x.cpu())

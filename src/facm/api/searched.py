"""The method that was searched for a trained network: ``facm schedule RUN``."""

from __future__ import annotations

from facm.pretrained.trained import Trained
from facm.sampling.methods import Method


def searched(trained: Trained, num_steps: int) -> Method:
    """With ``num_steps`` evaluations. Raises ValueError where none was searched, or for other weights or steps."""
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: zero steps make no sample; expected at least 1")
    method = trained.schedule().method(num_steps, trained.identity, f"the schedule of {trained.path}")
    method.check(trained.interface)
    return method

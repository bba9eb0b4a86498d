"""A training run and its folder on disk."""

from facm.runs.optim import Constant, CosineDecay

__all__ = ["Constant", "CosineDecay"]

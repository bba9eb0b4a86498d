"""A training run and its folder on disk."""

from facm.optim import Constant, CosineDecay

__all__ = ["Constant", "CosineDecay"]

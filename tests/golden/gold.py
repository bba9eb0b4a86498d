"""Weights and inputs of the golden vectors: a rule, not data.

Everything is drawn from numpy's legacy ``RandomState``, whose stream numpy guarantees never to change, keyed by name:
weights and inputs are rebuilt from (salt, name, shape) and need not be stored.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

KEPT = ("pos_embed", "freqs_cos", "freqs_sin")  # fixed tables, left as the model builds them


def noise(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normals float64 for a string key."""
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))


def tensor64(key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(noise(key, shape))


def tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    return tensor64(key, shape).float()


def weight(salt: str, name: str, shape: tuple[int, ...]) -> Tensor | None:
    """One parameter by its state-dict name, float32; None for a table that stays as it is."""
    if name.endswith(KEPT):
        return None
    a = noise(f"{salt}:{name}", shape)
    if name.endswith("embedding_table.weight"):
        a = 0.5 * a
    elif len(shape) == 1:
        a = 1 + 0.1 * a if name.endswith("weight") else 0.1 * a  # gains of norms, biases
    else:
        a = a / math.sqrt(np.prod(shape[1:]))  # 1/sqrt(fan_in)
    return torch.from_numpy(a.astype(np.float32))


@torch.no_grad()
def fill(module: torch.nn.Module, salt: str) -> torch.nn.Module:
    """Overwrite every tensor of the state dict in place by the rule: nothing is left at zero."""
    for name, value in module.state_dict().items():
        new = weight(salt, name, tuple(value.shape))
        if new is not None:
            value.copy_(new)
    return module


def probe(name: str, gradient: Tensor) -> float:
    """<gradient, a fixed random direction>: a whole tensor checked in one number."""
    return float((gradient.detach().double() * tensor64("probe:" + name, tuple(gradient.shape))).sum())

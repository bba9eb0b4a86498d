"""The handwritten digits that scikit-learn contains: real images without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from facm.core.component import component
from facm.core.types import Data
from facm.data.in_memory import InMemory


@dataclass(frozen=True)
@component
class Digits(Data):
    """scikit-learn's ``load_digits``: 1797 scans (1, 8, 8) of 10 classes, with values 0 to 16 mapped to [-1, 1].

    Source: UCI, Optical Recognition of Handwritten Digits (its test part). Needs scikit-learn (``facm[demo]``)."""

    split: Literal["all", "train", "test"] = "all"
    """Which scans to read: all, 1541 for training, or 256 for testing (every seventh scan of each class)."""

    def open(self) -> InMemory:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError("Digits() needs scikit-learn, which is not installed: pip install 'facm[demo]'") from error
        scans, labels = load_digits(return_X_y=True)
        test = np.zeros(len(labels), bool)
        test[np.argsort(labels, kind="stable")[6::7]] = True
        chosen = {"all": test | True, "train": ~test, "test": test}[self.split]
        images = (scans[chosen] / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
        return InMemory(images, labels[chosen], num_classes=10, flip=False, name=f"Digits({self.split})")

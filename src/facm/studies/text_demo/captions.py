"""Captions of handwritten digits, in several wordings."""

from __future__ import annotations

import numpy as np

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS = (
    "{word}",
    "{digit}",
    "a {word}",
    "the digit {digit}",
    "the number {word}",
    "a handwritten {word}",
)
NEGATIVE = ""
"""The prompt of the null, which the model is guided away from."""


def caption(label: int, wording: int) -> str:
    """One wording of a digit, such as "a handwritten seven"."""
    return WORDINGS[wording % len(WORDINGS)].format(word=WORDS[label], digit=label)


def all_captions() -> list[str]:
    """All wordings of all digits."""
    return [caption(label, wording) for label in range(len(WORDS)) for wording in range(len(WORDINGS))]


def captions_of(labels: np.ndarray, seed: int) -> list[str]:
    """One caption for each label (n,), with its wording drawn from ``seed``."""
    drawn = np.random.default_rng(seed).integers(len(WORDINGS), size=len(labels))
    return [caption(int(label), int(wording)) for label, wording in zip(labels, drawn, strict=True)]

"""What the text demo begins with: pictures of digits with their captions as files, and the untrained pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facm.core.files import folder_atomically
from facm.data import Digits
from facm.sampling.images import to_uint8
from facm.studies.text_demo.captions import captions_of
from facm.studies.text_demo.pipeline import new_pipeline


def write_pictures(out: Path, seed: int, most: int | None = None) -> None:
    """All digits as ``out``/NUMBER.png with their captions in NUMBER.txt beside them; ``out`` is whole or not there.

    seed: of the captions' wordings. most: of the digits, the first so many; None: all.
    """
    from PIL import Image

    digits = Digits().open()
    batch = digits.read(np.arange(len(digits) if most is None else most))
    labels = np.asarray(batch.cond)
    with folder_atomically(out) as partial:
        for i, (pixels, text) in enumerate(zip(to_uint8(batch.x_1), captions_of(labels, seed), strict=True)):
            Image.fromarray(np.ascontiguousarray(pixels)).save(partial / f"{i:04}.png")
            (partial / f"{i:04}.txt").write_text(text, encoding="utf-8")


def write_untrained(out: Path, seed: int) -> None:
    """The untrained pipeline as a folder of diffusers; ``out`` is whole or not there. seed: of its weights."""
    digits = Digits().open()
    x = digits.read(np.arange(len(digits))).x_1
    pipe = new_pipeline(float(x.mean()), float(x.std()), seed=seed)
    with folder_atomically(out) as partial:
        pipe.save_pretrained(partial, safe_serialization=True)

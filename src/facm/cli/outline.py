"""facm outline: a published model's configuration without its weights, to plan and rehearse with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from facm.core.terminal import say


def outline(
    model: Annotated[Literal["wan2.2-a14b"], tyro.conf.Positional],
    out: Path,
    size: tuple[int, ...] = (1024, 1024),
    frames: int = 1,
) -> None:
    """Write the configuration of a published model, and one empty sample, for facm plan and facm train --dry-run where
    neither its weights nor data are at hand.

    Args:
        model: the model.
        out: folder to write: model/ and data/ in it. What exists is not overwritten.
        size: side, or height and width, of the pictures in pixels.
        frames: of a clip; 1 is a picture.
    """
    from facm.core.files import TakenError, folder_atomically
    from facm.foundation.outline import outline_wan22

    if not 1 <= len(size) <= 2:
        raise ValueError(f"--size {' '.join(map(str, size))}, expected a side, or height and width")
    try:
        with folder_atomically(out) as partial:
            outline_wan22(partial, size[0], size[-1], frames)
    except TakenError as error:
        raise ValueError(f"--out {out} exists and is not overwritten; choose another name") from error
    say(f"the outline of {model}, {size[0]} x {size[-1]} pixels, {frames} frames: {out}")
    say(f"facm plan wan2.2-t2i --model {out}/model --data {out}/data")

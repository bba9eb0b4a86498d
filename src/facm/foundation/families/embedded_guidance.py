"""Guidance that a transformer is told, as those are that were distilled from a guided one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def embedded_guidance(transformer: Any, guidance: float | None, t: Tensor) -> Tensor | None:
    """(B,) for a transformer that is told its guidance, None for others, which do not hear it.

    Raises ValueError where such a transformer is told none.
    """
    if not transformer.config.guidance_embeds:
        return None
    if guidance is None:
        raise ValueError(
            "guidance = None: this transformer is told its guidance, expected a number, such as 3.5 (FLUX.1-dev) or 4 "
            "(FLUX.2-dev); DiffusersModel takes it as embedded_guidance"
        )
    return torch.full_like(t, guidance)

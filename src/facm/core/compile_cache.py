"""Where compiled code is kept between runs, so that a run that goes on, or another of the same network, has it."""

from __future__ import annotations

import os
from pathlib import Path

from facm.core.torch_private import allow_many_shapes

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code() -> Path:
    """Let torch.compile keep its code in the folder that it returns: the one that ``TORCHINDUCTOR_CACHE_DIR`` names, or
    else ``$FACM_CACHE/inductor`` or ``~/.cache/facm/inductor``. By itself it takes one in /tmp, which may be empty
    after a restart.
    """
    allow_many_shapes()
    root = Path(os.environ.get("FACM_CACHE") or "~/.cache/facm").expanduser()
    folder = Path(os.environ.setdefault(VARIABLE, str(root / "inductor")))
    folder.mkdir(parents=True, exist_ok=True)
    return folder

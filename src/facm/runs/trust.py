"""Recipe files that this person has run or vouched for: only those are executed when they come with a run folder.

Kept in the user's own folder, never in a run's: ``$XDG_STATE_HOME/facm/trusted-recipes.jsonl``, by default below
``~/.local/state``. What is trusted is a file's content together with the folder where its imports are found: a run's
folder may be moved or copied, and nobody can send a known recipe along with other modules for it to import.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from pathlib import Path

from facm.runs import log


def is_trusted(content: bytes, home: Path) -> bool:
    """Whether this person has run a recipe file of this content whose imports were found in ``home``.

    A folder that is not there any more offers nothing to import, and does not matter.
    """
    folders = {entry.get("folder") for entry in _entries() if entry.get("sha256") == _sha256(content)}
    return bool(folders) and (str(home.resolve()) in folders or not home.exists())


def remember(content: bytes, home: Path) -> None:
    """Trust a recipe file from now on. Where that cannot be written down, a RuntimeWarning says so."""
    if is_trusted(content, home) and home.exists():
        return
    try:
        path = _path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log.append(path, {"sha256": _sha256(content), "folder": str(home.resolve())})
        path.chmod(0o600)
    except (OSError, ValueError, RuntimeError) as error:
        warnings.warn(
            f"cannot write down that you trust this recipe ({error}): opening its runs will need --trust-recipe",
            RuntimeWarning,
            stacklevel=2,
        )


def _entries() -> list[dict[str, object]]:
    """All that was written down; nothing from a file that others could have written."""
    try:
        path = _path()
        found = path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return []
        return log.read(path)
    except (OSError, ValueError, RuntimeError):  # the last: there is no home
        return []


def _path() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "facm" / "trusted-recipes.jsonl"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

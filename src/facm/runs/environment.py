"""Where and how a command runs: what a result needs to be had again."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from facm import __version__

PACKAGES = (
    *("torch", "numpy", "safetensors", "pillow", "diffusers", "transformers", "peft"),
    *("torch-fidelity", "scikit-learn"),
)
"""Whose versions are recorded where they are installed."""


def environment() -> dict[str, Any]:
    """Where and how a command runs: enough to run it again."""
    cuda = torch.cuda.is_available()
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "facm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": dict(_versions()),
        "device": torch.cuda.get_device_name() if cuda else (platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git": _git(Path(__file__).parent),
    }


@functools.cache
def _versions() -> dict[str, str]:
    """As the process found them at first: what it has imported does not change."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@functools.cache
def _git(where: Path) -> dict[str, str] | None:
    """As the process found it at first, as near as can be to what it has imported."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, timeout=20, check=True)
        return done.stdout.decode(errors="replace").strip()  # a diff may hold any bytes

    try:
        return {"commit": ask("rev-parse", "HEAD"), "diff": ask("diff", "HEAD")}
    except (OSError, subprocess.SubprocessError):
        return None

"""Where and how a command runs: what a result needs to be had again."""

from __future__ import annotations

import contextlib
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


def environment() -> dict[str, Any]:
    """Where and how a command runs: enough to run it again."""
    packages = (
        "torch",
        "numpy",
        "safetensors",
        "pillow",
        "diffusers",
        "transformers",
        "torch-fidelity",
        "scikit-learn",
    )
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    cuda = torch.cuda.is_available()
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "facm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": torch.cuda.get_device_name() if cuda else (platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git": _git(Path(__file__).parent),
    }


def _git(where: Path) -> dict[str, str] | None:
    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, timeout=20, check=True)
        return done.stdout.decode(errors="replace").strip()  # a diff may hold any bytes

    try:
        return {"commit": ask("rev-parse", "HEAD"), "diff": ask("diff", "HEAD")}
    except (OSError, subprocess.SubprocessError):
        return None

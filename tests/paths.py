"""Where tests find what they read: the repository's own files, and data that is not part of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
VARIABLE = "FACM_TEST_DATA"
"""The environment variable that names a folder with data/ and golden/: real images and the reference's files."""


def outside(*parts: str) -> Path:
    """A path in that folder; there is none where the variable is not set."""
    return Path(os.environ.get(VARIABLE, os.devnull), *parts)


def needs(path: Path) -> Path:
    """``path``, or skip the test that needs it."""
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand: set {VARIABLE} to a folder that holds it")
    return path

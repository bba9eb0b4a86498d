"""A tiny model, and data that are prepared with it."""

from pathlib import Path

import pytest

from facm.foundation.prepare.pipeline import prepare
from facm.foundation.prepare.sources import source_at
from tests.foundation.prepared_parts import FAST, PICTURES, photos, prompts_file
from tests.foundation.wan_parts import tiny_wan, tiny_wan22


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan(tmp_path_factory.mktemp("models") / "wan")


@pytest.fixture(scope="session")
def wan22(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan of two experts."""
    return tiny_wan22(tmp_path_factory.mktemp("models") / "wan22")


@pytest.fixture(scope="session")
def by_teacher(wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five prompts, of which the teacher made latents: shards of 2, 2, 1."""
    root = tmp_path_factory.mktemp("teacher")
    prepare(source_at(prompts_file(root)), wan, root / "data", FAST)
    return root / "data"


@pytest.fixture(scope="session")
def of_pictures(wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in three buckets."""
    root = tmp_path_factory.mktemp("pictures")
    prepare(source_at(photos(root / "photos")), wan, root / "data", PICTURES)
    return root / "data"

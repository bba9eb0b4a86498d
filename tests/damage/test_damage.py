"""A damaged file of any kind is an error that names it, and never wrong numbers where the format can tell."""

import warnings
from collections import Counter
from pathlib import Path

import pytest

from facm.core.state_dict import CheckpointError
from tests.damage.damage_parts import KINDS, Kind, damaged


def tally(kind: Kind, folder: Path, seeds: range) -> Counter[str]:
    """How many of the damages are noticed, change nothing, are silent, or end with another error ("traceback: ...")."""
    file = kind.make(folder)
    whole = file.read_bytes()
    found: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = kind.read(folder)
        for seed in seeds:
            content = damaged(whole, seed)
            if content == whole:
                continue
            file.write_bytes(content)
            try:
                found["unchanged" if kind.read(folder) == right else "silent"] += 1
            except (ValueError, CheckpointError) as error:
                named = file.name in str(error) or str(folder) in str(error)
                found["noticed" if named else f"not named: {error}"] += 1
            except Exception as error:
                found[f"traceback: {type(error).__name__} {error}"] += 1
            file.write_bytes(whole)
    return found


def check(name: str, found: Counter[str]) -> None:
    allowed = {"noticed", "unchanged"} | (set() if KINDS[name].checked else {"silent"})
    assert set(found) <= allowed, dict(found)
    assert found["noticed"] > 0


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_noticed(name: str, tmp_path: Path) -> None:
    check(name, tally(KINDS[name], tmp_path, range(24)))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_damage_of_200_kinds_is_noticed(name: str, tmp_path: Path) -> None:
    check(name, tally(KINDS[name], tmp_path, range(1000, 1200)))

"""The names that components are recorded by: each leads to one component, whichever version recorded it."""

import dataclasses
import importlib

import pytest

from facm.core.public_names import (
    ALIASES,
    BEFORE,
    EXPORTS,
    PUBLIC,
    REMOVED,
    RENAMED_CLASSES,
    RENAMED_FIELDS,
    VERSION_0_1,
    modern,
)
from facm.core.serialize import find


@pytest.mark.parametrize("package", EXPORTS)
def test_every_package_exports_what_is_recorded_by_its_name(package):
    module = importlib.import_module(package)
    for name in EXPORTS[package]:
        assert getattr(module, name).__name__ == name
        assert PUBLIC[name] == f"{package}:{name}"


@pytest.mark.parametrize(
    ("recorded", "public"),
    [
        ("facm.objectives.facm:FACM", "facm:FACM"),
        ("facm.run:Run", "facm:Run"),
        ("facm.run:Every", "facm:Intervals"),
        ("facm.derivative.whole:WholeNetwork", "facm.derivative:WholeNetwork"),
        ("facm:FACM", "facm:FACM"),
        ("mine:FACM", "mine:FACM"),
    ],
)
def test_a_name_stands_for_itself_or_for_what_it_is_called_now(recorded, public):
    assert modern(recorded) == public


def test_the_names_of_then_and_now_are_one_to_one():
    assert len(ALIASES) == sum(map(len, VERSION_0_1.values())) == len(BEFORE)
    assert all(ALIASES[BEFORE[public]] == public for public in BEFORE)
    assert not ALIASES.keys() & PUBLIC.keys()
    assert all(modern(modern(name)) == modern(name) for name in ALIASES)


def test_renamed_fields_are_fields_now_and_were_others_then():
    for name, renamed in RENAMED_FIELDS.items():
        now = {field.name for field in dataclasses.fields(find(name))}
        assert set(renamed.values()) <= now
        assert not renamed.keys() & now


def test_what_was_removed_or_renamed_is_no_name_any_more():
    assert not REMOVED.keys() & (ALIASES.keys() | set(PUBLIC.values()))
    assert not RENAMED_CLASSES.keys() & PUBLIC.keys()
    assert set(RENAMED_CLASSES.values()) <= PUBLIC.keys()

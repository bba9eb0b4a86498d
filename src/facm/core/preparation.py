"""A folder that is filled shard by shard: claimed by one process, for one preparation, and resumed from its records.

The folder ``records`` holds the settings that determine the bytes, so that two preparations never mix, and a record for
each finished shard, without which the shard is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from facm.core import claims
from facm.core.files import write_text
from facm.core.serialize import modernised
from facm.core.untrusted.door import read_json

RECORDS = "records"
SETTINGS = "settings.json"


@contextlib.contextmanager
def held(out: Path, doing: str) -> Iterator[None]:
    """Lock the folder, which is created if necessary, until the context or the process ends.

    doing: what another process does there, such as "prepares latents in it", for the ValueError where it does.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claims.held(out, make=True))
        except claims.HeldError as error:
            raise ValueError(f"{out} is in use by another process that {doing}") from error
        yield


def check_a_folder(out: Path) -> None:
    """Raise ValueError where ``out`` can be no folder."""
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise ValueError(f"prepare: out = {str(out)!r} is a file or lies below one, expected a folder")


def digest_of(content: Any) -> str:
    """The first 16 hex digits of the sha256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def begin(out: Path, settings: Mapping[str, Any], present: set[str], expected: set[str]) -> None:
    """Write the settings into ``out``, or hold them against those of the preparation there; see :func:`begun`."""
    if begun(out, settings, present, expected):
        return
    path = out / RECORDS / SETTINGS
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(dict(settings), indent=1) + "\n")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs, of settings in settings only those that do."""
    for key, value in now.items():
        was = before.get(key)
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            yield from (f"{key}.{difference}" for difference in _differences(was, value))
        elif was != value:
            yield f"{key} = {was!r}, now {value!r}"


def begun(out: Path, settings: Mapping[str, Any], present: set[str], expected: set[str]) -> bool:
    """Whether ``out`` holds a preparation with these settings; False where it holds none. Writes nothing.

    settings: as JSON, all that determines the bytes. present: names of data files that are in ``out``. expected: names
    of those that this preparation writes.
    Raises ValueError naming the settings that differ, and for data files that no preparation, or another one, wrote.
    """
    path = out / RECORDS / SETTINGS
    now = json.loads(json.dumps(dict(settings)))
    if not path.exists():
        if present:
            raise ValueError(f"{out} holds {min(present)}, which no preparation left here: choose another folder")
        return False
    try:
        before = read_json(path)
        differing = list(_differences({key: modernised(before.get(key)) for key in now}, now))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not the settings of a preparation ({error})") from error
    if differing:
        unfinished = sorted(expected - present)
        begun_only = f", or delete it: it is not finished, {unfinished[0]} is missing" if unfinished else ""
        raise ValueError(f"{out} holds another preparation: {'; '.join(differing)}; choose another folder{begun_only}")
    unknown = sorted(present - expected)
    if unknown:
        raise ValueError(f"{out / unknown[0]}: expected {len(expected)} shards, and not this one")
    return True


def record_path(shard: Path) -> Path:
    """The record of a shard, which confirms that it is complete."""
    return shard.parent / RECORDS / f"{shard.stem}.json"


def record_text(content: Mapping[str, Any]) -> str:
    """A record as it is written, with a digest of all of it."""
    return json.dumps({**content, "digest": digest_of(dict(content))}) + "\n"


def read_record(shard: Path) -> Any:
    """The content of a shard's record without its digest; None where the shard or its record is missing.

    Raises ValueError naming a record that is damaged: what was recorded ends up in the manifest.
    """
    path = record_path(shard)
    if not shard.exists() or not path.exists():
        return None
    try:
        content = read_json(path)
        if content.pop("digest") != digest_of(content):
            raise ValueError("changed since it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable_record(shard, error) from error
    return content


def unreadable_record(shard: Path, error: Exception) -> ValueError:
    """The error about a record that cannot be read, with what to do."""
    return ValueError(
        f"{record_path(shard)}: not the record of a shard ({type(error).__name__}: {error}); delete it to encode the "
        "shard again"
    )

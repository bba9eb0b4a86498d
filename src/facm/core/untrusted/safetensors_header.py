"""The header of a safetensors file: what it claims is held against the file before anything is allocated."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from facm.core.untrusted.door import open_regular, parse_json

MOST_HEADER = 2**25
"""Bytes of a header: 32 MiB. The format itself allows 100 MB, which takes minutes to read."""
MOST_TENSORS = 100_000
MOST_DIMENSIONS = 16

BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32},
    **{"F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64},
}
"""Type -> bits of a value."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file.

    dtype: as the format spells it, such as "F32".
    begin, end: its bytes, counted from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A whole header: tensors by name, and the file's metadata."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path, links: bool = True) -> Header:
    """The header of a safetensors file whose tensors fill it exactly.

    links: see :func:`facm.core.untrusted.door.open_regular`, whose errors this raises, too.
    Raises ValueError naming the file for one that is cut short or damaged, or that claims more than it holds.
    """
    with open_regular(path, links) as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise ValueError(f"{path}: not a whole safetensors file (its header is cut short)")
        if length > MOST_HEADER:
            raise ValueError(f"{path}: its header has {length} bytes, expected at most {MOST_HEADER}")
        content = file.read(length)
    try:
        claimed = parse_json(content.decode(), "its header")
        metadata = claimed.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("its metadata are not texts")
        if len(claimed) > MOST_TENSORS:
            raise ValueError(f"{len(claimed)} tensors, expected at most {MOST_TENSORS}")
        tensors = {name: _entry(name, claim, 8 + length) for name, claim in claimed.items()}
        reached = 8 + length
        for entry in sorted(tensors.values(), key=lambda entry: (entry.begin, entry.end)):
            if entry.begin != reached:
                raise ValueError("its tensors overlap or leave gaps")
            reached = entry.end
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if reached != size:
        raise ValueError(f"{path}: {size} bytes, expected {reached} by its header: truncated or damaged")
    return Header(tensors, metadata)


def check_numbers(config: object, header: Header, where: str) -> None:
    """Raise ValueError where a configuration beside weights names a number that no network with them can have: above
    the number of the weights, of the sides of any of them, and of 4096; or a list or text of over 4096 entries."""
    most = max([4096, len(header.tensors), *(side for entry in header.tensors.values() for side in entry.shape)])
    ahead: list[tuple[str, object]] = [("it", config)]
    while ahead:
        name, value = ahead.pop()
        if isinstance(value, dict | list | str) and len(value) > 4096:
            raise ValueError(f"{where}: {name!r:.60} has {len(value)} entries, expected at most 4096")
        if isinstance(value, dict):
            ahead += [(str(key), item) for key, item in value.items()]
        elif isinstance(value, list):
            ahead += [(name, item) for item in value]
        elif isinstance(value, int | float) and not abs(value) <= most:
            raise ValueError(f"{where}: {name!r:.60} = {value!r:.40}, expected at most {most} beside these weights")


def check_size(values: int, header: Header, where: str) -> None:
    """Raise ValueError where a network has many times the values that the file of its weights has; which of a few are
    missing is for others to say."""
    held = sum(math.prod(entry.shape) for entry in header.tensors.values())
    if values > 4 * held + 2**20:
        raise ValueError(f"{where}: a network of {values} values, expected {held} as in the weights beside it")


def _entry(name: str, claim: dict[str, object], start: int) -> Entry:
    dtype, shape, span = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(shape, list) or not isinstance(span, list) or len(span) != 2 or len(shape) > MOST_DIMENSIONS:
        raise TypeError(f"{name!r:.60} has no shape and place")
    if any(type(number) is not int or not 0 <= number < 2**63 for number in (*shape, *span)):
        raise TypeError(f"{name!r:.60} has shape = {shape!r:.60}, data_offsets = {span!r:.60}, expected numbers from 0")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise TypeError(f"{name!r:.60} has dtype = {dtype!r:.40}, expected one of {', '.join(BITS)}")
    begin, end = span
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise ValueError(f"{name!r:.60} has {end - begin} bytes for {math.prod(shape)} values of {dtype}")
    return Entry(dtype, tuple(shape), start + begin, start + end)

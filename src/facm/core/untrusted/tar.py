"""Reading tar archives header by header, with a bound on everything that a header claims.

Python's ``tarfile`` reads as much as a header says and follows headers into each other, and some damaged archives keep
it busy without end. The stored bytes of a file with holes are not its content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

BLOCK = 512
END = 2 * BLOCK
"""Number of zero bytes that end an archive."""
MOST_END = 2**26
"""Bytes of zeros after the last member: 64 MiB, of which programs write 10 KB."""
MOST_NAME = 2**16
"""Bytes of a long name."""
MOST_ATTRIBUTES = 2**20
"""Bytes of the attributes (pax) of one member."""

REGULAR = (b"0", b"\0", b"7")
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders and pipes."""
ATTRIBUTES = (b"x", b"X")


class Source(Protocol):
    """A file, or a stream that moves forward only."""

    def read(self, size: int, /) -> bytes | bytearray: ...

    def seek(self, place: int, /) -> Any: ...


class Damaged(ValueError):
    """What is wrong with an archive, without its name."""


@dataclass(frozen=True)
class Member:
    """A regular file in an archive.

    name: Its path there.
    offset: Where its content begins, in bytes from the start of the archive.
    size: Bytes of its content.
    """

    name: str
    offset: int
    size: int


def members(file: Source, length: int | None = None) -> Iterator[Member]:  # noqa: PLR0912 (one branch a kind of header)
    """The regular files of a tar archive in its order; whoever iterates may read and seek in ``file`` meanwhile.

    file: The archive, uncompressed; it is only moved forward here.
    length: Bytes of the archive, where that is known: no member may reach beyond it.
    Raises Damaged for an archive that is cut short or damaged, and for a member that has holes or claims more than
    there can be.
    """
    place, said, named = 0, dict[str, bytes](), b""
    while True:
        file.seek(place)
        block = bytes(file.read(BLOCK))
        if not block.strip(b"\0"):
            break
        if len(block) < BLOCK or not is_header(block):
            raise Damaged(f"no header at byte {place}, where data follow")
        kind, size, begin = block[156:157], _number(block[124:136], place), place + BLOCK
        if kind in (*ATTRIBUTES, b"g", b"L", b"K"):
            content = _read(file, size, MOST_NAME if kind in (b"L", b"K") else MOST_ATTRIBUTES, place)
            if kind in ATTRIBUTES:
                said = _attributes(content, place)
            elif kind == b"g":
                _check_global(_attributes(content, place), place)
            elif kind == b"L":
                named = content.partition(b"\0")[0]
            place = _after(begin, size)
            continue
        name = (said.get("GNU.sparse.name") or said.get("path") or named or _name(block)).decode(
            errors="surrogateescape"
        )
        if kind == b"S" or any(key.startswith("GNU.sparse") for key in said):
            raise Damaged(f"{name} has holes (tar -S), expected all of its bytes: pack it without -S")
        if "size" in said:
            size = _decimal(said["size"], place)
        if kind in WITHOUT_CONTENT or (kind == b"\0" and name.endswith("/")):
            size = 0
        elif length is not None and begin + size > length:
            raise Damaged(f"{name} has {size} bytes at byte {begin}, and the archive ends at byte {length}")
        elif kind in REGULAR:
            yield Member(name, begin, size)
        place, said, named = _after(begin, size), {}, b""
    if said or named:
        raise Damaged(f"it ends at byte {place}, where a member is announced")
    _check_end(file, place, len(block))


def _check_end(file: Source, place: int, found: int) -> None:
    """Raise unless only zeros, and enough of them, end the archive: a damaged header would hide all after it."""
    while part := file.read(2**16):
        if part.strip(b"\0"):
            raise Damaged(f"no header at byte {place}, where data follow")
        found += len(part)
        if found > MOST_END:
            raise Damaged(f"more than {MOST_END} zeros after byte {place}, expected an end")
    if found < END:
        raise Damaged(f"it ends at byte {place + found} without the {END} zeros that end an archive")


def is_header(block: bytes) -> bool:
    """Whether the block's checksum is right, in the sum of unsigned or, as old programs have it, of signed bytes."""
    said = block[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,7}", said):
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(rest)
    return int(said, 8) in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes, place: int) -> int:
    """The number in a field of a header: octal text, or 95 bits where the first bit is set."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.partition(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-7]*", text):
        raise Damaged(f"the header at byte {place} has the size {text!r}, expected a number from 0")
    return int(text or b"0", 8)


def _decimal(text: bytes, place: int) -> int:
    if not re.fullmatch(rb"[0-9]{1,20}", text):
        raise Damaged(f"the header at byte {place} has the size {text[:20]!r}, expected a number from 0")
    return int(text)


def _after(begin: int, size: int) -> int:
    """Where the header after a content begins."""
    return begin + -(-size // BLOCK) * BLOCK


def _name(block: bytes) -> bytes:
    name, prefix = (field.partition(b"\0")[0] for field in (block[:100], block[345:500]))
    is_posix = block[257:263] == b"ustar\0"  # GNU keeps other things there
    return prefix + b"/" + name if prefix and is_posix else name


def _read(file: Source, size: int, most: int, place: int) -> bytes:
    if size > most:
        raise Damaged(f"the header at byte {place} claims {size} bytes of names or attributes, expected at most {most}")
    content = bytes(file.read(size))
    if len(content) < size:
        raise Damaged(f"it ends in the header at byte {place}")
    return content


def _attributes(content: bytes, place: int) -> dict[str, bytes]:
    """The values of a pax header: lines such as "27 path=some/long/name", whose number counts the line's bytes."""
    found: dict[str, bytes] = {}
    start = 0
    while start < len(content) and content[start]:
        head = re.compile(rb"([0-9]{1,7}) ([^=]{1,1000})=").match(content, start)
        end = start + int(head[1]) if head else 0
        if head is None or not head.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            raise Damaged(f"the attributes at byte {place} are damaged")
        found[head[2].decode("utf-8", "replace")] = content[head.end() : end - 1]
        start = end
    return found


def _check_global(said: dict[str, bytes], place: int) -> None:
    meant = [key for key in said if key in ("path", "size") or key.startswith("GNU.sparse")]
    if meant:
        raise Damaged(f"the header at byte {place} says {meant[0]} of all members, expected it at each")

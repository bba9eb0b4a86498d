"""Tar archives: read as Python reads the sound ones, and within bounds for all others."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from facm.core.untrusted.tar import Damaged, Member, members

NAMES = ("a.png", "b/" * 60 + "c.png", "ü" * 120, "x" * 99, "x" * 100, "d.cls", "empty")


def archive(form: int, **headers: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form, pax_headers=headers) as tar:
        for k, name in enumerate(NAMES[: len(NAMES) if form != tarfile.USTAR_FORMAT else 2]):
            member = tarfile.TarInfo(name)
            member.size = 0 if name == "empty" else 100 * k + 1
            tar.addfile(member, io.BytesIO(bytes([k + 1]) * member.size))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"other{kind!r}.png")
            member.type, member.linkname = kind, "../../outside"
            tar.addfile(member)
    return content.getvalue()


def found(content: bytes) -> list[Member]:
    return list(members(io.BytesIO(content), len(content)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_regular_files_are_found_as_python_finds_them(form: int) -> None:
    content = archive(form, comment="all")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [Member(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    assert found(content) == expected
    assert len(expected) > 1


def header(name: bytes = b"a.png", size: bytes = b"00000000001", kind: bytes = b"0") -> bytes:
    block = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"00000000000\0"
    block = (block + b" " * 8 + kind).ljust(257, b"\0") + b"ustar\00000"
    block = block.ljust(512, b"\0")
    return block[:148] + f"{sum(block):06o}\0 ".encode() + block[156:]


def announced(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    said = f"{len(content) if size is None else size:011o}".encode()
    return header(kind=kind, size=said) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def pax(key: str, value: str) -> bytes:
    line = f" {key}={value}\n".encode()
    length = len(line) + 2
    return announced(b"x", str(length).encode() + line)


ONE = header() + b"x".ljust(512, b"\0")
LAST = bytes(1024)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a member of 1 TB": (header(size=b"\x80" + (2**40).to_bytes(11, "big")) + LAST, "a.png has 1099511627776 bytes"),
    "a negative size": (header(size=b"\xff" * 12) + LAST, "has the size .*, expected a number from 0"),
    "a size that is none": (header(size=b"99999999999") + LAST, "has the size b'99999999999', expected a number"),
    "pax size of 1 TB": (pax("size", "1099511627776") + ONE + LAST, "a.png has 1099511627776 bytes"),
    "pax size below 0": (pax("size", "-99999999999") + ONE + LAST, "has the size b'-99999999999', expected"),
    "pax size of many digits": (pax("size", "9" * 50) + ONE + LAST, "has the size b'99999999999999999999', expected"),
    "pax of gigabytes": (announced(b"x", b"", 2**32) + ONE + LAST, "claims 4294967296 bytes of names or attributes"),
    "a long name of gigabytes": (announced(b"L", b"", 2**32) + ONE + LAST, "claims 4294967296 bytes of names"),
    "a long name cut": (announced(b"L", b"x" * 512, 60_000), "it ends in the header at byte 0"),
    "names without a member": (announced(b"L", b"name") * 2000 + LAST, "where a member is announced"),
    "attributes that are none": (
        announced(b"x", b"no attributes") + ONE + LAST,
        "the attributes at byte 0 are damaged",
    ),
    "attributes without end": (announced(b"x", b"999 path=a\n") + ONE + LAST, "the attributes at byte 0 are damaged"),
    "attributes of length 0": (announced(b"x", b"0 path=a\n") + ONE + LAST, "the attributes at byte 0 are damaged"),
    "a global path": (announced(b"g", b"12 path=abc\n") + ONE + LAST, "says path of all members"),
    "GNU holes": (header(kind=b"S") + b"x".ljust(512, b"\0") + LAST, r"a.png has holes \(tar -S\)"),
    "pax holes 0.0": (pax("GNU.sparse.size", "100000") + ONE + LAST, r"a.png has holes \(tar -S\)"),
    "pax holes 0.1": (pax("GNU.sparse.map", "0,1,99999") + ONE + LAST, r"a.png has holes \(tar -S\)"),
    "pax holes 1.0": (pax("GNU.sparse.major", "1") + ONE + LAST, r"a.png has holes \(tar -S\)"),
    "a cut header": (ONE + header()[:300], "no header at byte 1024"),
    "no end": (ONE, "it ends at byte 1024 without the 1024 zeros"),
    "another checksum": (
        ONE + header().replace(b"a.png", b"b.png") + LAST,
        "no header at byte 1024, where data follow",
    ),
    "nothing": (b"", "it ends at byte 0 without the 1024 zeros"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_claims_and_damage_are_refused(name: str) -> None:
    content, message = HOSTILE[name]
    with pytest.raises(Damaged, match=message):
        found(content)


def test_a_hole_after_the_last_member_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(ONE + LAST)
    os.truncate(tmp_path / "a.tar", 2**40)
    with (tmp_path / "a.tar").open("rb") as file, pytest.raises(Damaged, match="zeros after byte 1024"):
        list(members(file, 2**40))


@pytest.mark.parametrize("change", [lambda b: b.replace(b"ustar\000", b"ustar "), lambda b: b])
def test_signed_checksums_and_old_directories_are_read(change: Callable[[bytes], bytes]) -> None:
    old = header(b"f/", b"0", b"\0")
    assert [m.name for m in found(old + ONE + LAST)] == ["a.png"]
    block = bytearray(header("é".encode("latin1")))
    signed = sum(byte - 256 * (byte > 127) for byte in block[:148] + b" " * 8 + block[156:])
    block[148:156] = f"{signed:06o}\0 ".encode()
    assert found(bytes(block) + b"x".ljust(512, b"\0") + LAST)[0].size == 1

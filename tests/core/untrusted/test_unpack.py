"""Packed files and zip archives that would unpack to far more than they are."""

import bz2
import gzip
import lzma
import struct
import zipfile
from pathlib import Path

import pytest

from facm.core.untrusted import zip as zips
from facm.core.untrusted.unpack import FREE, PACKED, TooLarge, unpacked
from facm.core.untrusted.zip import Damaged, open_zip


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_files_are_unpacked_by_their_content(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    content = bytes(range(256)) * 100
    (tmp_path / "file").write_bytes(pack(content))
    with unpacked(tmp_path / "file") as stream:
        assert stream.read(10) == content[:10]
        stream.seek(1000)
        assert stream.read(2**60) == content[1000:]


def test_a_bomb_is_left_where_it_exceeds_its_bound(tmp_path: Path) -> None:
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(FREE + 2**21), 6))
    with unpacked(tmp_path / "bomb.gz") as stream, pytest.raises(TooLarge, match=f"more than {FREE} bytes"):
        stream.seek(2**60)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_the_checksum_at_the_end_counts(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_bytes(pack(bytes(1000))[:-1])
    with pytest.raises(PACKED), unpacked(tmp_path / "file") as stream:
        stream.read(1001)


def written(path: Path, *entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(Damaged, match=message), open_zip(path) as archive:
        archive.verify()


def test_zip_bombs_are_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    refused(written(tmp_path / "a.zip", ("a", bytes(FREE + 1))), f"it unpacks to {FREE + 1} bytes, expected at most")
    refused(written(tmp_path / "b.zip", ("a", b"x"), method=zipfile.ZIP_BZIP2), "'a' is packed by method 12")
    with pytest.warns(UserWarning, match="Duplicate"):
        written(tmp_path / "c.zip", ("mu.npy", b"1"), ("mu.npy", b"2"))
    refused(tmp_path / "c.zip", r"it holds 'mu\.npy' twice")


def test_damaged_zips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = written(tmp_path / "a.zip", ("a", b"x" * 1000), method=zipfile.ZIP_STORED).read_bytes()
    for place, byte in ((100, 0), (whole.index(b"PK\x01\x02"), 9), (whole.index(b"PK\x01\x02") + 8, 1)):
        (tmp_path / "b.zip").write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        refused(tmp_path / "b.zip", "zip")
    for content in (b"", whole[:-10], whole[50:], b"PK\x05\x06" + struct.pack("<8xLLH", 2**31, 0, 0)):
        (tmp_path / "b.zip").write_bytes(content)
        refused(tmp_path / "b.zip", "zip")
    monkeypatch.setattr(zips, "MOST_DIRECTORY", 2**10)
    refused(written(tmp_path / "c.zip", *((str(k), b"") for k in range(100))), "its directory has more than 1024 bytes")

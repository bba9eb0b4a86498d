"""Files of weights whose tensors claim more than they hold, or whose pickle would take without end."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from facm.core.untrusted import torch_files
from facm.core.untrusted.arrays import load_plain
from facm.core.untrusted.opcodes import Growth, check_growth
from facm.core.untrusted.torch_files import read_foreign

NESTED = b"(K\x01K\x01t" + b"q\x00h\x00\x86" * 40


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_foreign(path, "weights")
    assert str(path) in str(error.value)


def test_tensors_that_claim_more_than_the_file_has(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2**40)}, tmp_path / "wide.pt")
    refused(tmp_path / "wide.pt", "its tensors claim 4398046511104 bytes")
    torch.save({"a": torch.zeros(1).expand(2**40)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "its tensors claim 4398046511104 bytes")
    tied = torch.ones(1000)
    torch.save({"a": tied, "b": tied, "c": [tied]}, tmp_path / "tied.pt")
    assert read_foreign(tmp_path / "tied.pt", "weights")["b"].sum() == 1000


def test_content_that_unfolds_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "MOST_OBJECTS", 10_000)
    inner: list = [0] * 10
    for _ in range(40):
        inner = [inner, inner]
    torch.save({"a": inner}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "holds more than 10000 objects")
    for protocol in (b"\x80\x02", b""):
        with pytest.raises(Growth, match="unfolds to more than 10000 items"):
            check_growth(io.BytesIO(protocol + b"}" + NESTED + b"K\x01s."))
    check_growth(io.BytesIO(b"\x80\x02}(K\x01K\x02tK\x03s."))


@pytest.mark.filterwarnings("ignore")  # PyTorch warns of sparse and nested tensors
@pytest.mark.parametrize("kind", ["sparse", "nested", "quantized", "meta"])
def test_tensors_that_are_no_plain_numbers(tmp_path: Path, kind: str) -> None:
    made = {
        "sparse": torch.eye(3).to_sparse(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "meta": torch.ones(3, device="meta"),
    }
    torch.save({"model": [made[kind]]}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt holds a {kind} tensor, expected plain numbers"):
        read_foreign(tmp_path / "a.pt", "weights")


def test_archives_that_torch_save_never_writes(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "packed.pt", "w", 8) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    refused(tmp_path / "packed.pt", "its entries are compressed")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(bytes(1000)) + 500] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    refused(tmp_path / "flipped.pt", "Bad CRC-32")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("\udc80storages"))
    refused(tmp_path / "a.tar", "no zip archive or pickle")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a named pipe, expected a regular file")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy\nndarray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",  # np.ndarray((2**40,))
        b"\x80\x02}" + NESTED + b"K\x01s.",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",  # 2**63 bytes
    ],
    ids=["a large array", "a nested key", "many bytes"],
)
def test_pickles_of_arrays_that_claim_too_much(content: bytes) -> None:
    with pytest.raises(ValueError, match="mine: not a plain pickle of arrays"):
        load_plain(content, "mine")


def test_a_far_place_of_the_memo_takes_no_memory() -> None:
    assert load_plain(b"\x80\x02Nr\xff\xff\xff\x7f.", "mine") is None


def test_arrays_are_those_of_numpy() -> None:
    import pickle

    for array in (np.arange(6, dtype=">i4").reshape(2, 3), np.ones((3, 2), np.float32, order="F"), np.array(b"ab")):
        for protocol in (2, 3, 4):
            back = load_plain(pickle.dumps({"x": array, b"y": [1]}, protocol), "mine")
            assert (back[next(k for k in back if k in ("x", b"x"))] == array).all()

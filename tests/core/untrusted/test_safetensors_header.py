"""A safetensors header is believed only where it fits its file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from facm.core.untrusted.safetensors_header import MOST_HEADER, MOST_TENSORS, Entry, read_header


def written(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "w": torch.ones(2, 3),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(1, dtype=torch.int64),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "eight": torch.ones(2, dtype=torch.float8_e4m3fn),
        "complex": torch.ones(2, dtype=torch.complex64),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: tuple(value.shape) for name, value in tensors.items()
    }
    entry = header.tensors["w"]
    assert torch.equal(
        torch.frombuffer(bytearray(path.read_bytes()[entry.begin : entry.end]), dtype=torch.float32), torch.ones(6)
    )
    save_file({}, path)
    assert read_header(path).tensors == {}


def test_where_the_bytes_of_a_tensor_are(tmp_path: Path) -> None:
    path = written(tmp_path / "a", {"x": {"dtype": "I16", "shape": [2], "data_offsets": [0, 4]}}, b"\1\0\2\0")
    start = path.stat().st_size - 4
    assert read_header(path).tensors == {"x": Entry("I16", (2,), start, start + 4)}


def _of(dtype: Any = "U8", shape: Any = (2,), span: Any = (0, 2)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": span}}


LIES: dict[str, tuple[Any, bytes, str]] = {
    "more than there is": (_of(shape=[3], span=[0, 3]), b"ab", "2 bytes|truncated"),
    "less than there is": (_of(), b"abc", "truncated or damaged"),
    "2^50 numbers": (_of(shape=[2**50], span=[0, 2**50]), b"ab", "truncated or damaged"),
    "2^50 numbers in two bytes": (_of(shape=[2**50]), b"ab", "2 bytes for 1125899906842624 values"),
    "negative": (_of(span=[2, 0], shape=[-2]), b"ab", "expected numbers from 0"),
    "beyond 64 bits": (_of(shape=[2**64]), b"ab", "expected numbers from 0"),
    "true": (_of(shape=[True, 2]), b"ab", "expected numbers from 0"),
    "fraction": (_of(shape=[2.0]), b"ab", "expected numbers from 0"),
    "unknown type": (_of(dtype="F1000"), b"ab", "dtype = 'F1000'"),
    "type is no text": (_of(dtype=[8]), b"ab", "dtype"),
    "no shape": ({"x": {"dtype": "U8", "data_offsets": [0, 2]}}, b"ab", "shape"),
    "shape is no list": (_of(shape=2), b"ab", "no shape and place"),
    "many dimensions": (_of(shape=[1] * 17, span=[0, 1]), b"a", "no shape and place"),
    "entry is no object": ({"x": 3}, b"ab", "not a whole safetensors file"),
    "no object": ([1, 2], b"ab", "not a whole safetensors file"),
    "overlap": ({**_of(), "y": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"abc", "overlap or leave gaps"),
    "gap": ({**_of(), "y": {"dtype": "U8", "shape": [1], "data_offsets": [3, 4]}}, b"abcd", "overlap or leave gaps"),
    "metadata are numbers": ({"__metadata__": {"a": 1}}, b"", "metadata are not texts"),
    "metadata are a text": ({"__metadata__": "a"}, b"", "not a whole safetensors file"),
    "no JSON": (b"{" * 20, b"", "not JSON"),
    "no text": (b"{\xff\xfe}", b"", "not a whole safetensors file"),
    "deep": (b'{"a":' * 1000, b"", "brackets inside each other"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_claim_that_does_not_fit_is_refused(lie: str, tmp_path: Path) -> None:
    header, data, said = LIES[lie]
    path = written(tmp_path / "a.safetensors", header, data)
    with pytest.raises(ValueError, match=f"{path}.*({said})"):
        read_header(path)


def test_a_header_without_end_is_not_read(tmp_path: Path) -> None:
    many = {f"{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(MOST_TENSORS + 1)}
    with pytest.raises(ValueError, match="100001 tensors, expected at most 100000"):
        read_header(written(tmp_path / "many", many))
    long = tmp_path / "long"
    with long.open("wb") as file:
        file.write(struct.pack("<Q", MOST_HEADER + 1))
        file.truncate(MOST_HEADER + 100)
    with pytest.raises(ValueError, match="its header has 33554433 bytes"):
        read_header(long)


@pytest.mark.parametrize("content", [b"", b"\1\0\0", struct.pack("<Q", 100) + b"{}", struct.pack("<Q", 2**63) + b"{}"])
def test_a_header_that_is_cut_short(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its header is cut short"):
        read_header(path)

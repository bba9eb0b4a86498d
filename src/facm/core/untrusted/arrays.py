"""Reading arrays: pickles of plain containers and numpy arrays, without running any code that they name, and .npz."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from facm.core.untrusted.persistence import Call, Reader, Record, Refused, check_opcodes
from facm.core.untrusted.zip import Archive, Damaged

NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU][0-9]{1,6})")
"""Types of numbers and text, as numpy spells them."""
MOST_HEADER = 10_000
"""Bytes of the header of an array in an .npz."""


def load_plain(content: bytes, name: str) -> Any:
    """The object in a pickle made of builtin containers, numbers, strings, bytes and numpy arrays.

    Strings that Python 2 wrote are returned as bytes, arrays only as values of the outermost dictionary. Anything else
    that a pickle can name is refused before it is imported, and arrays are views of bytes that the pickle holds.
    Raises ValueError naming ``name`` for a refused or broken pickle.
    """
    try:
        check_opcodes(io.BytesIO(content))
        found = _Plain(io.BytesIO(content), len(content)).load()
    except Refused as error:
        raise ValueError(f"{name}: not a plain pickle of arrays (refused {error})") from error
    except Exception as error:  # a broken pickle can fail in nearly any way
        raise ValueError(f"{name}: not a plain pickle of arrays ({type(error).__name__}: {error})") from error
    if isinstance(found, dict):
        return {key: value.value if isinstance(value, _Array) else value for key, value in found.items()}
    return found


class _Array(Record):
    """An array of the file, whose numbers its state holds."""

    kind = "numpy array"
    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, content = state
        if not isinstance(dtype, _Type) or not isinstance(content, bytes) or not isinstance(shape, tuple):
            raise Refused("a numpy array without a shape, a type and bytes")
        found = np.frombuffer(content, dtype.order + dtype.code)
        self.value = found.reshape(shape, order="F" if columns_first else "C")


class _Type(Record):
    """A stand-in for numpy's dtype."""

    kind = "numpy dtype"

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not NUMBERS.fullmatch(text):
            raise Refused(f"a numpy array of {text!r:.40}, expected numbers")
        self.code, self.order = text, ""

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "=", "<", ">"):
            raise Refused("a numpy dtype without a byte order")
        self.order = order.strip("|=")


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _Array:
        raise Refused("an array of another kind")
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """The function behind bytes that Python 3 wrote in protocol 2; the real ``codecs.encode`` accepts any codec."""
    if encoding != "latin1":
        raise Refused(f"encoding {encoding!r}, expected 'latin1'")
    return text.encode("latin1")


class _Plain(Reader):
    stand_ins: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): Call(_reconstruct),
        ("numpy._core.multiarray", "_reconstruct"): Call(_reconstruct),
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
        ("_codecs", "encode"): Call(_encode),
    }

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file, size)
        self.encoding = "bytes"


@dataclass(frozen=True)
class Claim:
    """What the header of an array in an .npz claims.

    shape: of the array.
    dtype: of its entries; never of objects.
    columns_first: whether the first index runs fastest.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def claim_of(archive: Archive, name: str) -> Claim:
    """What the array ``name`` claims to be; nothing but its header is read.

    Raises :class:`facm.core.untrusted.zip.Damaged` for a damaged header, objects, or a claim that its entry does not
    hold.
    """
    with archive.open(f"{name}.npy") as stream:
        claim = _header(stream, name)
        if stream.tell() + claim.bytes != archive.sizes[f"{name}.npy"]:
            raise Damaged(f"{name} is {claim.dtype} {claim.shape}, which its entry does not hold")
    return claim


def read_array(archive: Archive, name: str) -> np.ndarray:
    """The array ``name`` of an .npz. Raises as :func:`claim_of` does."""
    claim = claim_of(archive, name)
    with archive.open(f"{name}.npy") as stream:
        _header(stream, name)
        content = stream.read()
    return np.frombuffer(content, claim.dtype).reshape(claim.shape, order="F" if claim.columns_first else "C")


def rows_of(archive: Archive, name: str, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The rows ``chosen`` of the array ``name``, ascending, one at a time. Raises as :func:`claim_of` does."""
    claim = claim_of(archive, name)
    if claim.columns_first:
        raise Damaged(f"{name} has its columns first, expected its rows")
    size = claim.bytes // max(claim.shape[0], 1)
    wanted = set(chosen.tolist())
    with archive.open(f"{name}.npy") as stream:
        _header(stream, name)
        for index in range(claim.shape[0]):
            row = stream.read(size)
            if index in wanted:
                yield np.frombuffer(row, claim.dtype).reshape(claim.shape[1:])


def _header(stream: IO[bytes], name: str) -> Claim:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise Damaged(f"{name} is of version {version}, expected 1.0 or 2.0")
    shape, columns_first, dtype = readers[version](stream, max_header_size=MOST_HEADER)
    if dtype.hasobject or dtype.fields or dtype.subdtype:
        raise Damaged(f"{name} is an array of {dtype!r:.60}, expected numbers or text")
    if any(type(side) is not int or not 0 <= side < 2**48 for side in shape):
        raise Damaged(f"{name} has the shape {shape!r:.60}")
    return Claim(shape, dtype, columns_first)

"""Reading a pickle of plain containers and numpy arrays without running any code that it names."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np


def load_plain(content: bytes, name: str) -> Any:
    """The object in a pickle made of builtin containers, numbers, strings, bytes and numpy arrays.

    Strings that Python 2 wrote are returned as bytes. Anything else that a pickle can name is refused before it is
    imported. Raises ValueError naming ``name`` for a refused or broken pickle.
    """
    try:
        return _Plain(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a broken pickle can fail in nearly any way
        raise ValueError(f"{name}: not a plain pickle of arrays ({type(error).__name__}: {error})") from error


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused {module}.{name}, expected only numpy arrays") from None


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """The function behind bytes that Python 3 wrote in protocol 2; the real ``codecs.encode`` accepts any codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused encoding {encoding!r}, expected 'latin1'")
    return text.encode("latin1")


# numpy has moved this function, and importing it from the old place warns.
_reconstruct: Any = np.empty(0).__reduce__()[0]

_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}

"""Reading weights that other programs wrote, without running any code in them."""

from __future__ import annotations

import argparse
import io
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from facm.core.tensors import unusual
from facm.core.untrusted.door import open_regular
from facm.core.untrusted.opcodes import Growth, check_growth
from facm.core.untrusted.safetensors_header import read_header
from facm.core.untrusted.tar import BLOCK, is_header
from facm.core.untrusted.zip import open_zip
from facm.core.utf8 import in_utf8

ZIP = b"PK\x03\x04"  # the first bytes of torch.save's files since PyTorch 1.6; older files cannot be mapped
PICKLE = b"\x80"
MOST_PICKLE = 2**26
"""Bytes of the pickle that names the tensors: 64 MiB."""
SHARED = 4
"""How often the bytes of a file may be claimed by its tensors: a few weights are tied in most files."""
FREE = 2**26
"""Bytes that the tensors of any file may claim."""
MOST_OBJECTS = 1_000_000
"""Objects in a file, counted as often as they are referred to."""


def read_foreign(path: Path, what: str, most: int | None = None) -> Any:
    """The content of a checkpoint on the CPU: what ``torch.save`` wrote, or a dict of the tensors in a .safetensors.

    Containers, numbers, text, tensors and ``argparse.Namespace`` (common for options) are read; a file that names
    anything else is refused before it is imported or called. Where the format allows it, tensors are mapped from the
    file and read only when they are used, so that the file must not change meanwhile; the checksums of such a file are
    verified before.

    what: Description of the expected content for the error, such as "the weights of a VA-VAE".
    most: Bytes that the file may have; None: any number.
    Raises ValueError naming a file that is missing, not regular, truncated, damaged, no checkpoint, or holds code, or
    whose tensors claim more than the file has.
    """
    try:
        with open_regular(path) as file:
            start, size = file.read(BLOCK), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file; expected {what}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; expected {what}") from error
    except ValueError as error:
        raise ValueError(f"{error}: {what}") from error
    if most is not None and size > most:
        raise ValueError(f"{path} has {size} bytes, expected {what}, of at most {most}")
    if start[8:9] == b"{":  # a length of eight bytes, followed by JSON
        return _safetensors(path, what)
    try:
        if start.startswith(ZIP):
            _check_zip(path)
        elif not start.startswith(PICKLE) or is_header(start):  # PyTorch would unpack a tar archive
            raise ValueError("no zip archive or pickle, as torch.save writes them")
        else:
            with open_regular(path) as file:
                _check_pickles(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: truncated or not a checkpoint ({error}); expected {what}") from error
    content = _pickled(path, what, mapped=start.startswith(ZIP))
    claimed = _claimed(content, path)
    if claimed > max(SHARED * size, FREE):
        raise ValueError(f"{path}: its tensors claim {claimed} bytes, and it has {size}; expected {what}")
    return content


def _safetensors(path: Path, what: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read_header(path)
        with in_utf8(path) as name:
            return load_file(name)
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); expected {what}") from error


def _check_zip(path: Path) -> None:
    """Raise ValueError unless all entries are stored as they are, with their checksums, and the pickle is harmless."""
    with open_zip(path) as archive:
        if archive.packed:
            raise ValueError("its entries are compressed, which torch.save never does")
        pickles = [name for name in archive.sizes if name.endswith(".pkl")]
        if any(archive.sizes[name] > MOST_PICKLE for name in pickles):
            raise ValueError(f"its pickle has more than {MOST_PICKLE} bytes")
        for name in pickles:
            _scan(io.BytesIO(archive.read(name)))
        archive.verify()


def _check_pickles(file: IO[bytes]) -> None:
    """The same of the pickles that a file in the format before 1.6 begins with, before the numbers."""
    for _ in range(5):
        _scan(file)


def _scan(pickle: IO[bytes]) -> None:
    try:
        check_growth(pickle)
    except Growth:
        raise
    except Exception:  # PyTorch says what is damaged or refused, and why
        return


def _claimed(content: Any, path: Path) -> int:
    """Bytes of all tensors in the content, each as often as it is referred to. Raises ValueError where that takes too
    long to find out, and for a tensor that is not all there, or is of a kind that most operations refuse."""
    total, count, ahead = 0, 0, [content]
    while ahead:
        value = ahead.pop()
        count += 1
        if count > MOST_OBJECTS:
            raise ValueError(f"{path} holds more than {MOST_OBJECTS} objects, or itself, expected a checkpoint")
        if isinstance(value, Tensor):
            if kind := unusual(value):
                raise ValueError(f"{path} holds a {kind} tensor, expected plain numbers: weights are never such")
            total += value.numel() * value.element_size()
        elif isinstance(value, Mapping):
            ahead += value.values()
        elif isinstance(value, list | tuple | set):
            ahead += value
        elif isinstance(value, argparse.Namespace):
            ahead += vars(value).values()
    return total


def _pickled(path: Path, what: str, mapped: bool) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, which the error names too
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken or foreign file can fail in nearly any way
        code = _code(str(error))
        if code:
            raise ValueError(
                f"{path} holds {code}: reading it could run code, so it is refused. Expected {what} made of tensors, "
                "numbers and text: where you trust the file, save its weights alone"
            ) from None
        raise ValueError(f"{path}: truncated or not a checkpoint ({_reason(error)}); expected {what}") from error


def _code(message: str) -> str:
    """The refused content according to PyTorch's message; empty where reading failed for another reason."""
    if "TorchScript archive" in message:
        return "a TorchScript program"
    named = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", message)
    return named[1] if named else ""


def _reason(error: Exception) -> str:
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)  # without advice on unsafe reading
    return f"{type(error).__name__}: {text.strip().partition(chr(10))[0][:200]}"

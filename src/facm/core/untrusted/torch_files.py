"""Reading weights that other programs wrote, without running any code in them."""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ZIP = b"PK\x03\x04"  # the first bytes of torch.save's files since PyTorch 1.6; older files cannot be mapped


def read_foreign(path: Path, what: str) -> Any:
    """The content of a checkpoint on the CPU: what ``torch.save`` wrote, or a dict of the tensors in a .safetensors.

    Containers, numbers, text, tensors and ``argparse.Namespace`` (common for options) are read; a file that names
    anything else is refused before it is imported or called. Where the format allows it, tensors are mapped from the
    file and read only when they are used, so that the file must not change meanwhile.

    what: Description of the expected content for the error, such as "the weights of a VA-VAE".
    Raises ValueError naming a file that is missing, truncated, no checkpoint, or holds code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file; expected {what}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; expected {what}") from error
    if start[8:] == b"{":  # a length of eight bytes, followed by JSON
        return _safetensors(path, what)
    return _pickled(path, what, mapped=start.startswith(ZIP))


def _safetensors(path: Path, what: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); expected {what}") from error


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

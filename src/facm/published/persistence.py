"""Reading pickles of NVIDIA's ``torch_utils.persistence`` (EDM, StyleGAN) as data.

Such a file holds the source of the modules that made its objects, and unpickling it executes that source. Here each
object becomes a :class:`Record` of its class's name and its attributes; the source is dropped unread. Of everything
else that a pickle can name, only what such files need has a stand-in, and none of these imports or calls what it stands
for; the rest is refused by its name alone.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

MARK = b"torch_utils.persistence"
PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))


class Record:
    """An object of the file, as data. kind: its class's name. state: its attributes by name."""

    kind = ""
    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise Refused(f"a {self.kind} whose state is a {type(state).__name__}")
        self.state = state


class Refused(pickle.UnpicklingError):
    """What a file holds that is not read, in words."""


def is_persistent(path: Path) -> bool:
    """Whether the file looks like such a pickle; False also where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(2**16)
    except OSError:
        return False
    return start.startswith(PICKLES) and MARK in start


def read_persistent(path: Path, what: str) -> Any:
    """The object in such a file: builtin containers, numbers, text, tensors on the CPU, and records of the rest.

    what: what was expected, for the message. Raises ValueError naming the file and what is refused in it, or how it is
    damaged.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file).load()
    except Refused as error:
        raise ValueError(
            f"{path} holds {error}: reading it could run code, so it is refused. Expected {what}"
        ) from error
    except Exception as error:  # a broken pickle can fail in nearly any way
        raise ValueError(f"{path}: truncated or damaged ({type(error).__name__}: {error}); expected {what}") from error


def modules_of(record: Record, path: Path) -> dict[str, Record]:
    """A network and all modules in it, by the prefix of their weights' names ("", "enc.", "enc.32x32_conv.", ...).

    Raises ValueError where a module is no module, or is there twice: a file could unfold without end.
    """
    found = {"": record}
    seen = {id(record)}
    ahead = [("", record)]
    while ahead:
        prefix, module = ahead.pop()
        for name, inner in _named(module, "_modules", prefix, path).items():
            if inner is None:
                continue
            if not isinstance(inner, Record) or id(inner) in seen:
                why = "is there twice" if isinstance(inner, Record) else f"is a {type(inner).__name__}"
                raise ValueError(f"{path}: {prefix}{name} {why}, expected a tree of modules")
            seen.add(id(inner))
            found[f"{prefix}{name}."] = inner
            ahead.append((f"{prefix}{name}.", inner))
    return found


def weights_of(modules: Mapping[str, Record], path: Path) -> dict[str, Tensor]:
    """The state dict of :func:`modules_of`: parameters and buffers, without those that are not to be saved."""
    found: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        passing = module.state.get("_non_persistent_buffers_set")
        unsaved = passing if isinstance(passing, set) else set()
        buffers = _named(module, "_buffers", prefix, path)
        kept = {name: value for name, value in buffers.items() if name not in unsaved}
        for name, value in {**_named(module, "_parameters", prefix, path), **kept}.items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"{path}: {prefix}{name} is a {type(value).__name__}, expected a tensor")
            found[prefix + name] = value
    return found


def _named(module: Record, kind: str, prefix: str, path: Path) -> dict[str, Any]:
    named = module.state.get(kind, {})
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"{path}: {prefix}{kind} is no dict by name, expected a module's")
    return named


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise Refused(f"{module}.{name}") from None


class _Call:
    """A function that a file may call. A pickle can also set attributes (BUILD), of which it must not have any."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("attributes for a function")


class _ModuleDict(Record):
    kind = "ModuleDict"


def _persistent(meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise Refused("a persistent object that is not of a class")
    record = Record()
    record.kind = meta["class_name"]
    record.__setstate__(meta.get("state"))
    return record


def _numbers(content: Any) -> Tensor:
    """A tensor's numbers, (N,): an archive of ``torch.save`` inside the pickle, of a storage alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that typed storages will go
            storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if isinstance(storage, torch.TypedStorage):
                return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
    except Exception as error:  # as above
        raise Refused("a tensor whose archive is damaged or names code") from error
    raise Refused(f"a tensor whose archive is a {type(storage).__name__}")


def _tensor(numbers: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(numbers, Tensor):
        raise Refused(f"a tensor over a {type(numbers).__name__}")
    return torch.as_strided(numbers, size, stride, offset)  # which checks that it stays inside


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused(f"a parameter over a {type(data).__name__}")
    return data


NUMBERS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}


class _Dtype:
    """numpy's dtype of a number; code: as in "f8"."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"|": "="}.get(state[1], state[1])


def _number(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.code not in NUMBERS:
        raise Refused("a numpy scalar that is not a number")
    return struct.unpack(dtype.order + NUMBERS[dtype.code], content)[0]


_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Call(_persistent),
    ("torch.nn.modules.container", "ModuleDict"): _ModuleDict,
    ("torch.storage", "_load_from_bytes"): _Call(_numbers),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("collections", "OrderedDict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("builtins", "set"): set,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _Call(_number),
    ("numpy._core.multiarray", "scalar"): _Call(_number),
}

"""Reading pickles of NVIDIA's ``torch_utils.persistence`` (EDM, StyleGAN) as data.

Such a file contains the source code of the classes of its objects, which ordinary unpickling executes. Here each
object becomes a :class:`Record` of its class's name and its attributes, and the source is discarded unread. The other
names that such files need have stand-ins, none of which imports or calls what it stands for; any other name is refused.

Reading must not take much more time or memory than the file's size either. It therefore limits everything that a few
bytes could make large: keys that are hashed repeatedly, sizes that a file merely claims, and repeated references.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from facm.core.untrusted.door import open_regular

MARK = b"torch_utils.persistence"
PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))

MOST_OPCODES = 2_000_000
MOST_TEXT = 10_000_000
"""Characters of a text; the longest is the source code of a module."""
MOST_BITS = 128
"""Bits of an integer."""
MOST_ITEMS = 64
"""Items of a tuple, which is a size or the arguments of a call."""
MOST_NAME = 256
"""Characters of a weight's full name, which contains the names of the modules around it."""
MOST_MODULES = 10_000
MOST_NAMED = 1000
"""Modules, parameters or buffers directly inside one module."""


class Record:
    """An object of the file, as data.

    kind: The name of its class.
    state: Its attributes by name.
    """

    kind = ""
    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise Refused(f"a {self.kind} whose state is a {type(state).__name__}")
        self.state = state


class Refused(pickle.UnpicklingError):
    """Content of a file that is refused; the message names it."""


class TooMuch(pickle.UnpicklingError):
    """Content of a file that would take more time or memory than such files need; the message names it."""


def is_persistent(path: Path) -> bool:
    """Whether the file looks like such a pickle; False for a file that cannot be read."""
    try:
        with open_regular(path) as file:
            start = file.read(2**16)
    except (OSError, ValueError):
        return False
    return start.startswith(PICKLES) and MARK in start


def read_persistent(path: Path, what: str) -> Any:
    """The object in such a file: builtin containers, numbers, text, tensors on the CPU, and records of other objects.

    what: Description of the expected content for the error.
    Raises ValueError naming the file and the content that is refused, or the damage.
    """
    try:
        with open_regular(path) as file:
            check_opcodes(file, _NOT_HERE)
            size = file.tell()
            file.seek(0)
            return _PersistentReader(file, size).load()
    except TooMuch as error:
        raise ValueError(f"{path} holds {error}: reading it could take without end. Expected {what}") from error
    except Refused as error:
        raise ValueError(
            f"{path} holds {error}: reading it could run code, so it is refused. Expected {what}"
        ) from error
    except Exception as error:  # a broken pickle can fail in nearly any way
        raise ValueError(f"{path}: truncated or damaged ({type(error).__name__}: {error}); expected {what}") from error


def modules_of(record: Record, path: Path) -> dict[str, Record]:
    """A network and all modules in it, by the prefix of their weights' names ("", "enc.", "enc.32x32_conv.", ...).

    Raises ValueError where a module is no record or occurs twice, or where there are too many modules or too long
    names, since a small file could otherwise unfold without end.
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
            if len(seen) > MOST_MODULES:
                raise ValueError(f"{path}: more than {MOST_MODULES} modules, expected a network's")
            found[f"{prefix}{name}."] = inner
            ahead.append((f"{prefix}{name}.", inner))
    return found


def weights_of(modules: Mapping[str, Record], path: Path) -> dict[str, Tensor]:
    """The state dict of :func:`modules_of`: parameters and persistent buffers.

    Raises ValueError where one is no tensor or shares its memory with another, since a small file could otherwise fill
    a large network.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
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
            numbers = value.untyped_storage().data_ptr()
            if numbers in seen:
                raise ValueError(f"{path}: {prefix}{name} shares its numbers with another weight, expected its own")
            seen.add(numbers)
            found[prefix + name] = value
    return found


def _named(module: Record, kind: str, prefix: str, path: Path) -> dict[str, Any]:
    named = module.state.get(kind, {})
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"{path}: {prefix}{kind} is no dict by name, expected a module's")
    if len(named) > MOST_NAMED or any(len(prefix) + len(name) > MOST_NAME for name in named):
        raise ValueError(
            f"{path}: {prefix}{kind} has {len(named)} names, expected at most {MOST_NAMED}, with the modules' around"
            f" them of at most {MOST_NAME} characters"
        )
    return named


def check_opcodes(file: IO[bytes], refused: Set[str] = frozenset(), only: Set[str] | None = None) -> None:
    """Scan the opcodes of one pickle without creating any object. Raises TooMuch or Refused."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count >= MOST_OPCODES:
            raise TooMuch(f"more than {MOST_OPCODES} opcodes")
        if opcode.name in refused or (only is not None and opcode.name not in only):
            raise Refused(f"the opcode {opcode.name}")
        if isinstance(argument, str) and len(argument) > MOST_TEXT:
            raise TooMuch(f"a text of {len(argument)} characters")
        if isinstance(argument, int) and argument.bit_length() > MOST_BITS:
            raise TooMuch(f"a whole number of {argument.bit_length()} bits")


_NOT_HERE = frozenset({"FROZENSET", "NEWOBJ_EX"})

# The opcodes of a storage in torch.save's old format of 2016, which is five pickles. None of them calls anything or
# refers to an earlier object, so that no hash takes longer than the text of its key. The present format, a zip archive,
# can be compressed, and torch.storage never wrote it inside a pickle.
_STORAGE = frozenset(
    {
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
        *("BINUNICODE", "GLOBAL", "TUPLE", "EMPTY_DICT", "SETITEMS", "EMPTY_LIST", "APPEND", "BINPUT", "BINPERSID"),
    }
)


_Python: Any = pickle._Unpickler  # the type stubs do not know its methods


class Reader(_Python):
    """The unpickler written in Python, whose methods can be replaced.

    The one in C hashes any key, and allocates its memo for any index that a file claims. A tuple of two equal tuples,
    repeated to some depth, takes 2**depth steps to hash; keys here are texts and small non-negative integers.

    stand_ins: What is called for each name of a module and a thing in it; any other name is refused.
    """

    stand_ins: Mapping[tuple[str, str], Any]

    def __init__(self, file: IO[bytes], size: int) -> None:
        """``size`` is the size of the pickle in bytes."""
        super().__init__(file)
        self.stack: list[Any] = []
        self._left = size

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            found = self.stand_ins[module, name]
        except KeyError:
            raise Refused(f"{module}.{name}") from None
        return Call(self._once) if found is _NUMBERS else found

    def _once(self, content: Any) -> Tensor:
        """The tensor in an archive; all archives together must fit into the file, or short calls could repeat one."""
        self._left -= len(content)
        if self._left < 0:
            raise TooMuch("tensors larger than the file")
        return _numbers(content)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_setitems(self) -> None:
        self._fill(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(items)

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise Refused(f"items for a {type(target).__name__}")
        target.update(zip(_keys(items[::2]), items[1::2], strict=True))

    def load_additems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if type(target) is not set:
            raise Refused(f"items for a {type(target).__name__}")
        target.update(_keys(items))

    def load_tuple(self) -> None:
        items = self.pop_mark()
        if len(items) > MOST_ITEMS:
            raise TooMuch(f"a tuple of {len(items)} items")
        self.stack.append(tuple(items))

    def load_reduce(self) -> None:
        self._check_arguments()
        super().load_reduce()

    def load_newobj(self) -> None:
        self._check_arguments()
        super().load_newobj()

    def _check_arguments(self) -> None:
        if type(self.stack[-1]) is not tuple:
            raise Refused(f"a call with a {type(self.stack[-1]).__name__} for its arguments")

    def load_build(self) -> None:
        target = self.stack[-2]
        if not isinstance(target, Record | _Dtype):  # attributes could make a tensor larger than the file
            raise Refused(f"attributes for a {type(target).__name__}")
        super().load_build()

    dispatch: ClassVar[dict[int, Any]] = {
        **_Python.dispatch,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.TUPLE[0]: load_tuple,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
    }


def _keys(items: list[Any]) -> list[Any]:
    for key in items:
        # Python hashes larger integers by a remainder, so that a file could choose many with the same hash.
        if type(key) not in (str, bytes) and not (type(key) is int and 0 <= key < 2**32):
            raise TooMuch(f"a key that is a {type(key).__name__}, not a text or a small whole number")
    return items


class Call:
    """A stand-in for a function that a file may call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Dict:
    """A stand-in for dict classes: creates an empty dict, whose items follow in the file."""

    def __new__(cls) -> Any:
        return {}


def _set(items: Any) -> set[Any]:
    """A set of a list's items; the list is emptied, since short calls could otherwise copy it repeatedly."""
    if type(items) is not list:
        raise Refused(f"a set of a {type(items).__name__}")
    made = set(_keys(items))
    items.clear()
    return made


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
    """The numbers (N,) of a tensor, from an archive of ``torch.save`` with a storage inside the pickle."""
    try:
        archive = io.BytesIO(content)
        for _ in range(5):
            check_opcodes(archive, only=_STORAGE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # typed storages are deprecated
            storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if isinstance(storage, torch.TypedStorage):
                if storage.nbytes() > len(content):  # an archive may claim more than it contains
                    raise Refused("a tensor whose archive is shorter than its storage")
                return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
    except Exception as error:  # a broken archive can fail in nearly any way
        raise Refused("a tensor whose archive is damaged or names code") from error
    raise Refused(f"a tensor whose archive is a {type(storage).__name__}")


def _tensor(numbers: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(numbers, Tensor):
        raise Refused(f"a tensor over a {type(numbers).__name__}")
    if type(size) is not tuple or type(stride) is not tuple:
        raise Refused("a tensor whose size or stride is no tuple")
    view = torch.as_strided(numbers, size, stride, offset)  # this checks that the view stays inside
    if math.prod(view.shape) > numbers.numel():
        raise TooMuch(f"a tensor of {math.prod(view.shape)} elements over {numbers.numel()}")
    return view


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused(f"a parameter over a {type(data).__name__}")
    return data


NUMBERS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}


class _Dtype:
    """A stand-in for numpy's dtype of a number, with a code such as "f8"."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if not isinstance(order, str) or order not in ("|", "=", "<", ">"):
            raise Refused("a numpy dtype without a byte order")
        self.order = "=" if order == "|" else order


def _number(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(dtype.code, str) or dtype.code not in NUMBERS:
        raise Refused("a numpy scalar that is not a number")
    return struct.unpack(dtype.order + NUMBERS[dtype.code], content)[0]


_NUMBERS = Call(_numbers)

_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Call(_persistent),
    ("torch.nn.modules.container", "ModuleDict"): _ModuleDict,
    ("torch.storage", "_load_from_bytes"): _NUMBERS,
    ("torch._utils", "_rebuild_tensor_v2"): Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): Call(_parameter),
    ("collections", "OrderedDict"): _Dict,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("builtins", "set"): Call(_set),
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): Call(_number),
    ("numpy._core.multiarray", "scalar"): Call(_number),
}


class _PersistentReader(Reader):
    stand_ins = _STAND_INS

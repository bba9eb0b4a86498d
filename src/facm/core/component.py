"""What makes a frozen dataclass a component: its fields are held against their annotations, with one error for all.

    @dataclass(frozen=True)
    @component
    class Blur:
        width: Annotated[int, Range("[1, 1024]")]
        strength: Positive = 1.0
        kind: Literal["box", "gauss"] = "box"

A component comes from a recipe, a command line, or a file of somebody else. Whatever it is made of, it is either what
its annotations say, or a ComponentError.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from facm.core.public_names import is_public

Cls = TypeVar("Cls", bound=type)


class ComponentError(ValueError):
    """A component with a value that its field cannot have, an unknown field, or a missing one."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field can have, or the lengths that a tuple can have: ``Annotated[float, Range("[0, 1)")]``.

    text: an interval, whose round bracket leaves the end out: "(0, inf]" are the positive numbers and infinity.
    """

    text: str

    @cached_property
    def _ends(self) -> tuple[bool, float, float, bool]:
        found = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", self.text)
        if found is None:
            raise ValueError(f"Range: text = {self.text!r}, expected an interval such as '[0, 1)'")
        low, high = (float(end) if set(end) & set(".einf") else int(end) for end in found.group(2, 3))
        return found[1] == "[", low, high, found[4] == "]"

    def __contains__(self, number: float) -> bool:
        with_low, low, high, with_high = self._ends
        return (low < number or (with_low and low == number)) and (number < high or (with_high and number == high))


Count = Annotated[int, Range("[1, 2147483647]")]
"""A number of things, of which there is at least one; it fits into 32 bits."""
Classes = Annotated[int, Range("[0, 16777216]")]
"""A number of classes, 0 where there are none."""
Images = Annotated[int, Range("[0, 999999999999]")]
"""Images seen, with at most as many digits as the names of checkpoints have room for."""
Seed = Annotated[int, Range("[0, 9223372036854775807]")]
"""The seed of random numbers, in 63 bits."""
Positive = Annotated[float, Range("[1e-12, 1e12]")]
"""A number above 0 whose square and inverse still are numbers in float32."""
Fraction = Annotated[float, Range("[0, 1]")]
"""A fraction or a probability."""
Finite = Annotated[float, Range("[-1e12, 1e12]")]
"""A number of either sign whose square still is a number in float32."""

_ANY_INT = Range("[-9223372036854775808, 9223372036854775807]")
_ANY_FLOAT = Range(f"[{-sys.float_info.max!r}, {sys.float_info.max!r}]")
_ANY_LENGTH = Range("[0, 1000]")
SHOWN = 80
"""Most characters of a value in an error."""

_hints: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()


def component(cls: Cls) -> Cls:
    """Check the fields of a frozen dataclass whenever one is made, before its own ``__post_init__``.

    Goes below ``@dataclass(frozen=True)``. Numbers must be within their :class:`Range`, and finite where there is none;
    an int is a number, a bool is not; an object must be of the annotated class, or fulfil the annotated protocol. A
    list becomes its tuple, as in JSON. The annotations must have a meaning at run time.
    """
    own: Callable[[Any], None] | None = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        _check(self, cls)
        if own is not None:
            own(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return cls


def refused(owner: Any, name: str, expected: str) -> ComponentError:
    """The error about the field ``name`` of a component, for a check that needs more than the field's annotation."""
    return ComponentError(f"{type(owner).__name__}: {name} = {shown(getattr(owner, name))}, expected {expected}")


def make(cls: type, fields: dict[str, Any]) -> Any:
    """A dataclass of these fields. Raises ComponentError where one is unknown or missing, naming those that it has."""
    known = [field for field in dataclasses.fields(cls) if field.init]
    names = [field.name for field in known]
    nothing = dataclasses.MISSING
    missing = [
        field.name
        for field in known
        if field.name not in fields and field.default is nothing and field.default_factory is nothing
    ]
    for problem, name in (
        *(("unknown", name) for name in fields if name not in names),
        *(("missing", name) for name in missing),
    ):
        fits = f"the fields {', '.join(names)}" if names else "no field"
        raise ComponentError(f"{cls.__name__}: the field {shown(name)} is {problem}, expected {fits}")
    return cls(**fields)


def check_fulfils(made: Any, protocol: type, by: Any, may_lack: tuple[str, ...] = ()) -> None:
    """Raise ComponentError unless ``made``, by a user's own part ``by``, has every name that the protocol asks for.

    may_lack: names that are not asked for in every case.
    """
    names = (*protocol.__annotations__, *vars(protocol))
    asked = [name for name in names if not name.startswith("_") or name in ("__call__", "__len__")]
    missing = [name for name in asked if not hasattr(made, name) and name not in may_lack]
    if missing:
        raise ComponentError(
            f"{type(by).__name__} made an object of type {type(made).__name__} without {', '.join(missing)}, "
            f"expected a {protocol.__name__}: {', '.join(asked)}"
        )


def shown(value: Any) -> str:
    """A value as an error shows it: on one line, and not longer than an error should be."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a user's own object, or of an integer with more digits than Python spells
        text = "an integer of over 4000 digits" if isinstance(value, int) else f"an object of {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _check(self: Any, cls: type) -> None:
    if cls not in _hints:
        hints = typing.get_type_hints(cls, include_extras=True)
        _hints[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    for name, hint in _hints[cls].items():
        value = getattr(self, name)
        if not _fits(value, hint):
            raise refused(self, name, _expected(hint))
        if isinstance(value, list):
            object.__setattr__(self, name, tuple(value))


def _parts(hint: Any) -> tuple[Any, Any, tuple[Any, ...], Range | None]:
    """The annotation without ``Annotated``, its origin, its arguments, and its range."""
    limits = None
    if typing.get_origin(hint) is Annotated:
        limits = next((part for part in hint.__metadata__ if isinstance(part, Range)), None)
        hint = hint.__origin__
    return hint, typing.get_origin(hint), typing.get_args(hint), limits


def _fits(value: Any, hint: Any) -> bool:
    bare, origin, arguments, limits = _parts(hint)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in arguments) or (
            isinstance(value, str) and value in arguments
        )
    if origin is tuple:
        return _fits_tuple(value, arguments, limits or _ANY_LENGTH)
    if bare in (int, float):
        kinds = int if bare is int else int | float
        limits = limits or (_ANY_INT if bare is int else _ANY_FLOAT)
        within = isinstance(value, kinds) and not isinstance(value, bool) and value in limits
        # An integer may lie between the last float and infinity.
        return within and (isinstance(value, float) or value in (_ANY_INT if bare is int else _ANY_FLOAT))
    if bare in (bool, str, None, NoneType):
        return isinstance(value, bare or NoneType)
    return _is_a(value, origin or bare)


def _fits_tuple(value: Any, items: tuple[Any, ...], lengths: Range) -> bool:
    if not isinstance(value, tuple | list) or len(value) not in lengths:
        return False
    if len(items) == 2 and items[1] is ...:
        return all(_fits(each, items[0]) for each in value)
    return len(value) == len(items) and all(map(_fits, value, items))


def _is_a(value: Any, kind: Any) -> bool:
    """Whether ``value`` is an instance of a class, or fulfils a protocol.

    A protocol asks for names alone: an optimiser has a ``build`` as a network has. What this package exports therefore
    says by its bases which protocols it fulfils; a user's own part needs only the names.
    """
    if kind is Any or not isinstance(kind, type) or isinstance(kind, GenericAlias):
        return True  # a type variable or another annotation that says nothing about a value
    if isinstance(value, type):
        return kind is type
    if is_public(type(value)):
        return kind in type(value).__mro__
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that cannot be asked at run time
        return True


def _expected(hint: Any) -> str:
    """What an annotation asks for, in words."""
    bare, origin, arguments, limits = _parts(hint)
    if origin in (typing.Union, UnionType):
        return " or ".join(_expected(each) for each in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(repr, arguments))
    if origin is tuple:
        return _expected_tuple(arguments, limits)
    if bare in (int, float):
        noun = "an integer" if bare is int else "a number"
        return f"{noun} within {limits.text}" if limits else f"{noun} of 64 bits" if bare is int else "a finite number"
    plain = {bool: "True or False", str: "text", None: "None", NoneType: "None"}
    if bare in plain:
        return plain[bare]
    name = getattr(origin or bare, "__name__", str(bare))
    return f"an instance of {name}"


def _expected_tuple(items: tuple[Any, ...], lengths: Range | None) -> str:
    many = len(items) == 2 and items[1] is ...
    each = _expected(items[0]) if many else ", ".join(map(_expected, items))
    count = f" of a length within {lengths.text}" if lengths else ""
    return f"a tuple{count}, each item {each}" if many else f"a tuple of {each}"

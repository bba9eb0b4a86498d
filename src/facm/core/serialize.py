"""Components to and from JSON, and the fingerprint that says whether two of them are the same.

A component is a frozen dataclass of numbers, text, tuples and other components. Reading one imports nothing but this
package: what else a file names must already be known, from the recipe file that it came with or from this process.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

from facm.core.component import ComponentError, make
from facm.core.public_names import BEFORE, PUBLIC, REMOVED, RENAMED_FIELDS, is_public, modern

_recorded: WeakValueDictionary[str, type] = WeakValueDictionary()
"""Components of the user's own that this process has recorded itself."""


def to_json(value: Any) -> Any:
    """Frozen dataclasses, enums, tuples and scalars as JSON, each object with the name of its type.

    Raises TypeError for anything else, naming it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"type": name_of(type(value)), **fields}
    if isinstance(value, enum.Enum):
        return {"type": name_of(type(value)), "value": value.value}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        if "type" in value or not all(isinstance(key, str) for key in value):
            raise TypeError(f"{value!r} cannot be recorded: expected text keys, none of them 'type'")
        return {key: to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{value!r} of type {type(value).__name__} cannot be recorded in run.json: a component is a dataclass of "
        "numbers, text, tuples and other components"
    )


def from_json(value: Any, recipe: ModuleType | None = None) -> Any:
    """The inverse of :func:`to_json`; sequences come back as tuples.

    recipe: the recipe file's module, which may define or import components of the user's own.
    Raises ValueError for a type that is not to be found there nor among this package's public names, and for a
    component with an unknown or missing field, or a value that its field cannot have.
    """
    if isinstance(value, list):
        return tuple(from_json(item, recipe) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: from_json(item, recipe) for key, item in value.items() if key != "type"}
    if "type" not in value:
        return fields
    name = modern(str(value["type"]))
    cls = find(name, recipe)
    renamed = RENAMED_FIELDS.get(name, {})
    fields = {renamed.get(key, key): item for key, item in fields.items()}
    if not issubclass(cls, enum.Enum):
        return make(cls, fields)
    if fields.keys() != {"value"}:
        raise ComponentError(f"{cls.__name__}: the fields {sorted(fields)}, expected 'value' alone")
    return cls(fields["value"])


def modernised(value: Any) -> Any:
    """Recorded JSON with the names of types and fields that are recorded now, so that rows of all versions compare."""
    if isinstance(value, list):
        return [modernised(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {key: modernised(item) for key, item in value.items()}
    if not isinstance(fields.get("type"), str):
        return fields
    fields["type"] = modern(fields["type"])
    renamed = RENAMED_FIELDS.get(fields["type"], {})
    return {renamed.get(key, key): item for key, item in fields.items()}


def types_in(value: Any) -> set[str]:
    """The public or other names of all types in recorded JSON."""
    if isinstance(value, list):
        return set().union(*map(types_in, value))
    if not isinstance(value, dict):
        return set()
    own = {modern(str(value["type"]))} if "type" in value else set()
    return own.union(*map(types_in, value.values()))


def name_of(cls: type) -> str:
    """The name that ``cls`` is recorded by. Raises TypeError for a class that nothing could find again."""
    if is_public(cls):
        return PUBLIC[cls.__qualname__]
    if "<locals>" in cls.__qualname__:
        raise TypeError(
            f"{cls.__qualname__} is defined inside a function, where resuming could not find it: "
            "move it to the top level of its file"
        )
    name = f"{cls.__module__}:{cls.__qualname__}"
    _recorded[name] = cls
    return name


def find(name: str, recipe: ModuleType | None = None) -> type:
    """The component that is recorded by ``name``; see :func:`from_json`."""
    if name in REMOVED:
        raise ValueError(f"{name} was a component of version 0.1 and is not one any more: {REMOVED[name]}")
    module, _, qualified = name.partition(":")
    found: Any = None
    if PUBLIC.get(qualified) == name:
        found = getattr(importlib.import_module(module), qualified)
    elif recipe is not None:
        found = _in_recipe(recipe, module, qualified)
    else:
        found = _recorded.get(name) or _in_main(module, qualified)
    if found is None and module == "__main__":
        raise ValueError(
            f"{qualified} was defined in a notebook, or in a script itself: run its definition again there, and open "
            "the run afterwards; to open it from anywhere, put the definition into a file and import it from there"
        )
    if found is None:
        raise ValueError(
            f"{name} is no component of this package, and no recipe file that came with it defines or imports it: "
            "refused, for finding it would import whatever is named"
        )
    if not (isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, enum.Enum))):
        raise ValueError(f"{name} is not a dataclass: refused")
    return found


def _in_recipe(recipe: ModuleType, module: str, qualified: str) -> Any:
    """What the recipe file defines under this name, or a module that it has imported something from; else None."""
    if module == recipe.__name__:
        return _attribute(recipe, qualified)
    for value in vars(recipe).values():
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(home, str) and (module == home or module.startswith(f"{home}.")) and module in sys.modules:
            return _attribute(sys.modules[module], qualified)
    return None


def _in_main(module: str, qualified: str) -> Any:
    """What this process's own program, such as a notebook, has defined by itself under this name; else None."""
    found = _attribute(sys.modules["__main__"], qualified) if module == "__main__" else None
    return found if getattr(found, "__module__", None) == "__main__" else None


def _attribute(value: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        value = vars(value).get(part) if isinstance(value, ModuleType | type) else None
    return value


def fingerprint(value: Any) -> str:
    """sha256 of a component's JSON: two runs with the same one would give the same numbers.

    Fields at their defaults are left out, so that a run made before a component got a new field is still itself.
    """
    return _sha256(_compact(value, name_of, {}))


def is_fingerprint_of(recorded: Any, value: Any) -> bool:
    """Whether this version, or version 0.1, would give ``value`` this fingerprint."""
    if recorded == fingerprint(value):
        return True
    before = {name: {new: old for old, new in fields.items()} for name, fields in RENAMED_FIELDS.items()}
    return bool(recorded == _sha256(_compact(value, _name_before, before)))


def _name_before(cls: type) -> str:
    return BEFORE.get(name_of(cls), name_of(cls))


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _compact(value: Any, name: Callable[[type], str], fields: Mapping[str, Mapping[str, str]]) -> Any:
    """As :func:`to_json`, with only those fields of a component that differ from their defaults.

    name: what a type is called. fields: public name -> field -> what it is called.
    """
    if isinstance(value, tuple | list):
        return [_compact(item, name, fields) for item in value]
    if isinstance(value, dict):
        return to_json(value) and {key: _compact(item, name, fields) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        called = fields.get(name_of(type(value)), {})
        differing = [f for f in dataclasses.fields(value) if f.init and not _at_default(f, getattr(value, f.name))]
        content = {called.get(f.name, f.name): _compact(getattr(value, f.name), name, fields) for f in differing}
        return {"type": name(type(value)), **content}
    if isinstance(value, enum.Enum):
        return {"type": name(type(value)), "value": value.value}
    return to_json(value)


def _at_default(field: dataclasses.Field[Any], value: Any) -> bool:
    """As recorded: a list is its tuple, and what takes no part in comparisons still counts."""
    if field.default_factory is not dataclasses.MISSING:
        return bool(to_json(value) == to_json(field.default_factory()))
    return field.default is not dataclasses.MISSING and bool(to_json(value) == to_json(field.default))

"""Docstrings as this package writes them, as Markdown: ``name: what it is`` lines as a list, roles as code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Object

_FIELD = re.compile(r"^(?P<names>\w+(?:, \w+)*): (?P<text>\S.*)$")
_ROLE = re.compile(r":(?:class|func|mod|meth|data):`[~.]?(?:[\w.]*\.)?(\w+)`")


def as_markdown(docstring: str) -> str:
    """Of a docstring whose indentation is gone."""
    lines: list[str] = []
    in_list = False
    for line in _ROLE.sub(r"`\1`", docstring).replace("``", "`").splitlines():
        field = _FIELD.match(line)
        if field and field["names"] not in ("Raises", "Example"):
            if not in_list:
                lines.append("")
            lines.append(f"- **{field['names']}**: {field['text']}")
            in_list = True
        elif line.startswith(("Raises ", "    ")) and in_list and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            if in_list and line.strip():
                lines.append("")
            in_list = False
            lines.append(line)
    return "\n".join(lines)


class Fields(Extension):
    """Rewrites every docstring as it is found, and lists the fields of a class below its own text."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        documented = [
            member
            for member in cls.members.values()
            if isinstance(member, Attribute) and member.docstring is not None and not member.name.startswith("_")
        ]
        if not documented:
            return
        fields = []
        for member in documented:
            default = "" if member.value is None else f" = `{member.value}`"
            said = " ".join(member.docstring.value.split())  # type: ignore[union-attr]  # those without were left out
            fields.append(f"- **{member.name}**{default}: {said}")
            member.docstring = None  # what has none is not shown by itself
        own = "" if cls.docstring is None else f"{cls.docstring.value.rstrip()}\n\n"
        cls.docstring = Docstring(own + "\n".join(fields), parent=cls)

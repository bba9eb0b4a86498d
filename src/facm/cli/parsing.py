"""From the words of a command line to a call of the command's function; help in two sizes."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from facm.core.component import ComponentError
from facm.core.terminal import say, say_text, warn_text

T = TypeVar("T")
HelpSize = Literal["short", "all"]
Hides = Callable[[Any, StructFieldSpec], bool]

ADVANCED = object()
Advanced = Annotated[T, ADVANCED]
"""Options that only --help-all shows; they are always parsed."""
Group = Annotated[T, tyro.conf.arg(name="")]
"""A dataclass of options without a common prefix."""

LISTS = ("--num-steps", "--size", "--times", "--classes", "--seeds", "--shape")
"""Options with several numbers."""
PARSING = (tyro.conf.HelptextFromCommentsOff,)
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
SHOWING = (*PARSING, tyro.conf.FlagCreatePairsOff, tyro.conf.SuppressFixed)


def call(function: Callable[..., T], words: Sequence[str], prog: str) -> T:
    """Call ``function`` with the arguments that ``words`` spell, or print its help and raise SystemExit(0)."""
    size = help_size(words)
    if size is not None:
        show_help(function, prog, size)
    signature = _without_body(function, get_type_hints(function, include_extras=True))
    return function(**parse(signature, _argument_first(words), prog))


def _argument_first(words: Sequence[str]) -> list[str]:
    """``words`` with what follows a list of numbers moved to the front: in --num-steps 1 2 RUN the last is no number of
    steps, and would be taken for one."""
    for at, word in enumerate(words):
        before = next((k for k in range(at - 1, -1, -1) if words[k].startswith("--")), None)
        if before is not None and words[before] in LISTS and at > before + 1 and re.match(r"-|\d", word) is None:
            return [word, *words[:at], *words[at + 1 :]]
    return list(words)


def parse(function: Callable[..., T], words: Sequence[str], prog: str) -> T:
    """What ``function``, which only builds its result, makes of ``words``.

    Raises ValueError for an unknown option or a value that a component cannot have, SystemExit(2) after other errors
    have been printed.
    """
    with plain_errors() as errors:
        try:
            return tyro.cli(function, args=words, prog=prog, config=PARSING)
        except SystemExit as end:
            if (wrong := _of_a_component(end)) is not None:
                errors.truncate(0)
                raise wrong from None
            known = _flags(function)
            given = [word.partition("=")[0] for word in words if word.startswith("--")]
            if unknown := [flag for flag in given if flag.replace("_", "-") not in known]:
                errors.truncate(0)
                close = difflib.get_close_matches(unknown[0], known, 1)
                hint = f"did you mean {close[0]}?" if close else f"{prog} --help-all lists the options"
                raise ValueError(f"unknown option {unknown[0]!r}: {hint}") from None
            raise


@contextlib.contextmanager
def plain_errors() -> Iterator[io.StringIO]:
    """What is printed to standard error inside is printed at the end, without colours, and made plain: tyro quotes the
    words of the command line. Yields what keeps it."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            yield errors
    finally:
        warn_text(_COLOURS.sub("", errors.getvalue()))


def _of_a_component(end: BaseException) -> ComponentError | None:
    """The component's error that ended the parsing, if one did."""
    error: BaseException | None = end
    while error is not None and not isinstance(error, ComponentError):
        error = error.__context__
    return error


def _flags(function: Callable[..., Any]) -> set[str]:
    """All options of ``function``, read off its help on a wide terminal, where no line is broken."""
    text, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            tyro.cli(function, args=["--help"], config=PARSING)
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return set(re.findall(r"--[a-z][\w.-]*", text.getvalue()))


def help_size(words: Sequence[str]) -> HelpSize | None:
    """Which help the words ask for, if any."""
    if "--help-all" in words:
        return "all"
    return "short" if {"-h", "--help"} & set(words) else None


def show_help(
    function: Callable[..., Any], prog: str, size: HelpSize, hides: Hides = lambda owner, field: False
) -> None:
    """Print the options of ``function`` and raise SystemExit(0).

    hides: whether a field of the dataclass ``owner`` is left out.
    """
    shown, hidden = _shown(function, size)
    text = _Kept(sys.stdout.encoding)
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(shown, args=["--help"], prog=prog, config=SHOWING, registry=_rules(hides))
    say_text(text.getvalue(), {r"(?<!\S)--?[a-z][\w.-]*": "bold", "[─│╭╮╰╯]+": "dim"})
    if hidden:
        say(f"All options: {prog} --help-all")
    raise SystemExit(0)


class _Kept(io.StringIO):
    """Printed text that is kept. Boxes are drawn as ``encoding`` allows it."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def renamed(words: Sequence[str], flags: Mapping[str, str | None]) -> list[str]:
    """``words`` with old spellings of flags, as --nfe and --nfe=4, in today's. flags: today's; None for a flag whose
    value is now the first argument."""
    first, rest = list[str](), list[str]()
    remaining = iter(words)
    for word in remaining:
        flag, equals, value = word.partition("=")
        now = flags.get(flag, flag)
        if now is None:
            first.extend([value] if equals else list(islice(remaining, 1)))
        else:
            rest.append(now + equals + value)
    return first + rest


def _shown(function: Callable[..., Any], size: HelpSize) -> tuple[Callable[..., Any], bool]:
    """``function`` as help of this size shows it, and whether that hides something. It is never called."""
    hints = get_type_hints(function, include_extras=True)
    advanced = {name for name, hint in hints.items() if size == "short" and ADVANCED in get_args(hint)[1:]}
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    shown = {
        name: Annotated[hint, tyro.conf.Suppress] if name in advanced else _tidy(hint, defaults.get(name))
        for name, hint in hints.items()
    }
    return _without_body(function, shown), bool(advanced)


def _without_body(function: Callable[..., Any], hints: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    """A function with the arguments and the docstring of ``function``, and these types, that returns its arguments."""

    def arguments(**given: Any) -> dict[str, Any]:
        return given

    arguments.__doc__ = function.__doc__
    arguments.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    arguments.__annotations__ = dict(hints)
    return arguments


def _rules(hides: Hides) -> ConstructorRegistry:
    """How help shows the fields of dataclasses."""
    registry, inside = ConstructorRegistry(), False

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal inside
        if inside or not dataclasses.is_dataclass(info.type):
            return None
        inside = True  # tyro's rule for dataclasses is wanted, rather than this one again
        try:
            spec = ConstructorRegistry.get_struct_spec(dataclasses.replace(info, markers=(*info.markers, *PARSING)))
        finally:
            inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        of_command = info.type.__module__.startswith("facm.cli.")
        fields = []
        for field in spec.fields:
            hint: Any = _tidy(field.type, field.default) if of_command else field.type
            if hides(info.type, field):
                hint = Annotated[hint, tyro.conf.Suppress]
            fields.append(dataclasses.replace(field, type=hint, default=_plain(field.default)))
        return dataclasses.replace(spec, fields=tuple(fields))

    return registry


def _plain(default: Any) -> Any:
    """A marked number or text without its mark, for tyro takes equal defaults for each other, whatever their type."""
    marked_of = type(default).__base__
    return marked_of(default) if marked_of in (int, float, str) and not isinstance(default, bool) else default


def _tidy(hint: Any, default: Any) -> Any:
    """Without "(default: None)" for an option that is absent by default: its help says what happens then."""
    absent = default is None or default is False or default == ()
    return Annotated[hint, tyro.conf.DisallowNone, tyro.conf.arg(help_behavior_hint="")] if absent else hint

"""The words after ``facm train`` and ``facm plan``: which of them is the recipe, and what its options make of it."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from tyro.constructors import StructFieldSpec

from facm.cli.errors import in_options
from facm.cli.lookup import find_recipe, is_name_of_a_recipe
from facm.cli.parsing import PARSING, Advanced, Group, HelpSize, call, help_size, parse, plain_errors, show_help
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from facm.cli.lookup import Recipe
    from facm.runs.config import Run

T = TypeVar("T")
DEFAULT = Engine()


def parse_recipe(
    command: Callable[..., Any], words: Sequence[str], prog: str, options: T
) -> tuple[Recipe, T, Run, Engine]:
    """The recipe among ``words`` with what they set, or its help and SystemExit(0).

    command: a function whose signature is the help of the command without a recipe. options: the command's own.
    Raises ValueError for an unknown or missing recipe.
    """
    at = _where_the_recipe_is(words, options)
    if at is None:
        if help_size(words) is not None:
            call(command, words, prog)
        raise ValueError(f"expected a recipe, as in {prog} digits-teacher: facm list shows them")
    recipe, rest = find_recipe(words[at]), [*words[:at], *words[at + 1 :]]
    taken = {"run", "engine"} | {field.name for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    if clash := taken & inspect.signature(recipe.function).parameters.keys():
        raise ValueError(f"recipe {recipe.spec} has an argument {clash.pop()!r}, an option of the command: rename it")
    prog = f"{prog} {shlex.quote(recipe.spec)}"  # which tyro splits
    size = help_size(rest)
    if size is not None:
        _show_help(recipe, prog, options, size)
    run = _first(recipe, rest, prog)
    return (recipe, *parse(_signature(recipe, options, run), rest, prog))


def _where_the_recipe_is(words: Sequence[str], options: Any) -> int | None:
    """The index of the recipe among the words; the rest are options, of which only some are known to take a value."""
    if words and not words[0].startswith("-"):
        return 0
    fields = (*dataclasses.fields(options), *dataclasses.fields(Engine))
    flags = {"--help", "--help-all"} | {_flag(field) for field in fields if field.type == "bool"}
    takes_value = {_flag(field) for field in fields} - flags
    sure, unsure = list[int](), list[int]()
    for at, (before, word) in enumerate(zip(["", *words], words, strict=False)):
        if word.startswith("-") or before in takes_value:
            continue
        follows_option = before.startswith("--") and "=" not in before and before not in flags
        (unsure if follows_option else sure).append(at)
    named = [at for at in (*sure, *unsure) if is_name_of_a_recipe(words[at])]
    return next(iter(named or sure), None)


def _flag(field: dataclasses.Field[Any]) -> str:
    prefix = "engine." if field in dataclasses.fields(Engine) else ""
    return f"--{prefix}{field.name.replace('_', '-')}"


def _first(recipe: Recipe, words: Sequence[str], prog: str) -> Run:
    """The run that the recipe's own options make, without --run.*, whose defaults come from it."""
    function: Any = recipe.function
    with _silenced():
        try:
            first, _ = tyro.cli(function, args=words, return_unknown_args=True, config=PARSING)
        except SystemExit:
            first = None
        except ValueError as error:
            raise ValueError(in_options(str(error), inspect.signature(function).parameters)) from error
    if first is None:  # again, to say what is wrong with the words
        with plain_errors():
            first, _ = tyro.cli(function, args=words, prog=prog, return_unknown_args=True, config=PARSING)
    return _checked(recipe, first)


def _checked(recipe: Recipe, run: Any) -> Run:
    from facm.runs.config import Run

    if not isinstance(run, Run):
        raise ValueError(f"recipe {recipe.spec} returned {type(run).__name__}, expected a facm.runs.config.Run")
    return run


def _signature(recipe: Recipe, options: T, run: Run) -> Callable[..., tuple[T, Run, Engine]]:
    """A function whose arguments are the recipe's, the command's, --run.* and --engine.*."""
    from facm.runs.config import Run

    def command(recipe: Any, command: T, run: Any, engine: Engine) -> tuple[T, Run, Engine]:
        return command, run, engine

    command.__doc__ = recipe.function.__doc__
    command.__annotations__ = {  # set here, for they depend on the recipe
        "recipe": Annotated[Any, tyro.conf.arg(name="", constructor=recipe.function)],
        "command": Group[type(options)],  # type: ignore[misc]
        "run": Advanced[tyro.conf.AvoidSubcommands[Run]],
        "engine": Advanced[Engine],
    }
    command.__defaults__ = (options, run, DEFAULT)
    return command


class _Int(int):
    """An argument of a recipe."""


class _Float(float):
    """An argument of a recipe."""


class _Str(str):
    """An argument of a recipe."""


_OF_RECIPE: dict[type, Callable[[Any], Any]] = {int: _Int, float: _Float, str: _Str}


def _show_help(recipe: Recipe, prog: str, options: Any, size: HelpSize) -> None:
    """Print the recipe's help, in which each number has one option: the recipe's own rather than --run.*.

    The recipe is called with marked defaults; a field of the run that holds a marked value repeats an option.
    """
    from facm.runs.config import Run

    function: Any = recipe.function
    parameters = inspect.signature(function).parameters.values()
    if any(p.default is p.empty for p in parameters):
        show_help(function, prog, size)
    marked = {p.name: _OF_RECIPE[type(p.default)](p.default) for p in parameters if type(p.default) in _OF_RECIPE}
    run = _checked(recipe, function(**marked))
    names = {field.name for field in dataclasses.fields(options)}

    def hides(owner: Any, field: StructFieldSpec) -> bool:
        return isinstance(field.default, _Int | _Float | _Str) or (owner is Run and field.name in names)

    show_help(_signature(recipe, options, run), prog, size, hides)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield

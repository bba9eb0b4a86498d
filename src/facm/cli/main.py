"""Entry point of the ``facm`` command, and the table of its commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from facm import __version__
from facm.cli.check import check
from facm.cli.distill import distill, finetune, of_model
from facm.cli.errors import readable_errors
from facm.cli.evaluate import evaluate, statistics
from facm.cli.export import export_to
from facm.cli.latents import encode, verify
from facm.cli.lookup import did_you_mean
from facm.cli.malloc import keep_freed_memory
from facm.cli.outline import outline
from facm.cli.parsing import call, renamed
from facm.cli.play import play
from facm.cli.prepare import prepare
from facm.cli.report import report, watch
from facm.cli.sample import sample
from facm.cli.schedule import schedule
from facm.cli.show import demo, list_all, show
from facm.cli.streams import standard_streams
from facm.cli.study import study
from facm.cli.train import plan, resume, run_plan, run_train, train
from facm.cli.weights import export, import_weights
from facm.core.terminal import say, warn_of_exception


@dataclass(frozen=True)
class Command:
    """One line of ``facm --help``."""

    summary: str
    """What it does, in a few words."""
    function: Callable[..., Any]
    """Its arguments are the options."""
    run: Callable[[list[str], str], Any] | None = None
    """What takes the words and the program's name instead, where the options depend on the words."""
    old: Mapping[str, str | None] = field(default_factory=dict)
    """Old spellings of options, which still work, and today's; None for the option that became the first argument."""
    only_prints: bool = False
    """Whether there is nothing to be done where nobody reads what it prints."""


SAMPLING = {"--nfe": "--num-steps", "--n": "--num-samples", "--batch": "--batch-size", "--from": None}
COMMANDS = {
    "demo": Command("from nothing to a one-step generator of digits, in about five minutes", demo),
    "list": Command("recipes and studies", list_all, only_prints=True),
    "show": Command("what a recipe or a run is", show, only_prints=True),
    "train": Command("train a recipe; each has options of its own", train, run_train),
    "resume": Command("continue an interrupted run", resume),
    "watch": Command("watch a run while it trains, in the terminal or as a page", watch),
    "report": Command("one page of a run, or of several side by side", report),
    "distill": Command("distil a text-to-image model of diffusers", distill, of_model("distill")),
    "finetune": Command("fine-tune one by flow matching, so that it can teach", finetune, of_model("finetune")),
    "check": Command("what is wrong with a teacher or a network of your own, and what to write", check),
    "plan": Command("predict the memory that a recipe takes on each GPU", plan, run_plan, only_prints=True),
    "outline": Command("a published model's configuration without weights, to plan with", outline),
    "play": Command("a page on this machine to try a network by hand", play),
    "sample": Command("draw samples from a run or a published file", sample, old=SAMPLING),
    "evaluate": Command("measure a run or a published file", evaluate, old=SAMPLING),
    "schedule": Command("search moves and times of a student's sampler", schedule),
    "statistics": Command("statistics of a folder of real images, to measure against", statistics),
    "study": Command("re-run one of the paper's tables", study, old={"--n": "--num-samples"}),
    "prepare": Command("prompts, or pictures with captions, into data of a text-to-image model", prepare),
    "latents encode": Command("encode a folder of images into latents", encode, old={"--batch": "--batch-size"}),
    "latents verify": Command("check a folder of latents", verify),
    "export": Command("write a text-to-image student for diffusers or ComfyUI", export_to),
    "weights export": Command("write a run's network into one file", export),
    "weights import": Command("convert a published checkpoint into one file", import_weights),
}
OLD_NAMES = {
    "prepare": "latents encode",  # with an autoencoder
    "verify": "latents verify",
    "export": "weights export",  # without --to
    "import": "weights import",
}
HELP = frozenset({"-h", "--help", "--help-all"})
ONLY_PRINT = HELP | {"--version", "--print-config", "--dry-run"}
"""Options that make any command one that only prints."""
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}
EXAMPLES = (
    "",
    "examples:",
    "  facm train digits-teacher --out runs/teacher",
    "  facm sample runs/teacher --num-steps 32 --num-samples 100",
    "",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the ``facm`` command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # the process is this command's
        sys.excepthook = warn_of_exception
    keep_freed_memory()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads cost 3x where something else runs, too
    first = words[0] if words else ""
    only_prints = not words or not ONLY_PRINT.isdisjoint(words) or (first in COMMANDS and COMMANDS[first].only_prints)
    with standard_streams(only_prints), readable_errors(_renamed(words).split(" ")[0]):
        if words == ["--version"]:
            say(f"facm {__version__}")
            return
        if not words or words[0] in HELP:
            _show_commands(COMMANDS)
            raise SystemExit(0)
        name, rest = _command(words)
        command, prog = COMMANDS[name], f"facm {name}"
        rest = renamed(rest, command.old)
        if command.run is not None:
            command.run(rest, prog)
        else:
            call(command.function, rest, prog)


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The name of the command in the words, and the words after it. Raises ValueError for one that there is not."""
    first, rest = _renamed(words), words[1:]
    if first in COMMANDS:
        return first, rest
    if first in GROUPS:
        within = {name: command for name, command in COMMANDS.items() if name.startswith(f"{first} ")}
        if not rest or rest[0] in HELP:
            _show_commands(within)
            raise SystemExit(0)
        if f"{first} {rest[0]}" in within:
            return f"{first} {rest[0]}", rest[1:]
        given, known = f"{first} {rest[0]}", list(within)
    else:
        given, known = first, list(dict.fromkeys([*(name.split()[0] for name in COMMANDS), *COMMANDS, "--version"]))
    what = "option" if first.startswith("-") else "command"
    hint = did_you_mean(given, known).strip() or f"expected one of {', '.join(known)}"
    raise ValueError(f"unknown {what} {given!r}: {hint}")


def _renamed(words: list[str]) -> str:
    """The first word, or today's name of a command that had this one. ``facm prepare`` with an autoencoder and ``facm
    export`` without --to are those of before; otherwise they are for text-to-image models."""
    first = words[0] if words else ""
    options = {word.partition("=")[0] for word in words}
    before = {"prepare": "--autoencoder" in options, "export": options.isdisjoint({"--to", *HELP})}
    return OLD_NAMES.get(first, first) if before.get(first, True) else first


def _show_commands(commands: Mapping[str, Command]) -> None:
    say("usage: facm COMMAND [OPTIONS]", "")
    if len(commands) == len(COMMANDS):
        say("Turn any flow-matching network into a 1-8 step generator.", "")
    width = max(map(len, commands))
    for name, command in commands.items():
        say(f"  {name:{width}}  {command.summary}")
    if len(commands) == len(COMMANDS):
        say(*EXAMPLES)
    say("Options of a command: facm COMMAND --help")

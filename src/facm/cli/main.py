"""Entry point of the ``facm`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from facm import __version__
from facm.cli.errors import readable_errors
from facm.cli.evaluate import evaluate, statistics
from facm.cli.malloc import keep_freed_memory
from facm.cli.prepare import prepare, verify
from facm.cli.sample import sample
from facm.cli.show import demo, show
from facm.cli.study import study
from facm.cli.train import plan, plan_recipe, resume, train, train_recipe
from facm.cli.weights import export, import_weights


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the ``facm`` command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads cost 3x where something else runs, too
    with readable_errors():
        if arguments == ["--version"]:
            print(f"facm {__version__}")
            return
        of_recipe = {"train": train_recipe, "plan": plan_recipe}.get(arguments[0]) if arguments[1:] else None
        if of_recipe is not None and not arguments[1].startswith("-"):
            of_recipe(arguments[1], arguments[2:])
            return
        commands: dict[str, Callable[..., Any]] = {
            "prepare": prepare,
            "verify": verify,
            "train": train,
            "resume": resume,
            "plan": plan,
            "sample": sample,
            "evaluate": evaluate,
            "statistics": statistics,
            "export": export,
            "import": import_weights,
            "show": show,
            "demo": demo,
            "study": study,
        }
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="facm",
            description="Turn any flow-matching network into a 1-4 step image generator. Start with: facm demo",
            args=arguments or ["--help"],
        )

"""facm show | demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def show(what: Annotated[str, tyro.conf.Positional]) -> None:
    """Say what a recipe or a run is; 'recipes' lists the package's recipes, 'studies' its studies.

    Args:
        what: a recipe's name, mine.py:run, a run folder, or one of the words recipes and studies.
    """
    if what == "studies":
        from facm.cli.lookup import studies

        for name, summary in studies().items():
            print(f"{name}\n    {summary}")
        print("facm study NAME; its options: facm study --help")
        return
    from facm.cli.show_run import show_anything

    show_anything(what)


def demo(out: Path = Path("runs/demo"), seed: int = 0, quiet: bool = False) -> None:
    """From nothing to a one-step generator of digits, with numbers and pictures, in about five minutes on two cores.

    Args:
        out: folder for everything; an interrupted demo goes on where it stopped, a finished one is shown again.
        seed: of everything random.
        quiet: print only the table and where the report is.
    """
    from facm.studies.demo import run_demo

    run_demo(out, seed, quiet)

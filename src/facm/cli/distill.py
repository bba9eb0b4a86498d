"""facm distill | finetune: the recipes of text-to-image models, by the model's folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from facm.cli.train import run_train
from facm.core.terminal import say_text

ModelPath = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
PROBE = "--probe"
HELP = {"-h", "--help", "--help-all"}


def distill(model: ModelPath, data: str, probe: bool = False) -> None:
    """Distil a text-to-image model of diffusers into a student of 1 to 8 steps: facm distill --help.

    Args:
        model: folder of the model, with model_index.json.
        data: folder that facm prepare wrote with this model.
        probe: measure on one batch what spoils the tangent and what would help; train nothing.
    """


def finetune(model: ModelPath, data: str) -> None:
    """Fine-tune a text-to-image model by flow matching, so that it can teach: facm finetune --help.

    Args:
        model: folder of the model, with model_index.json.
        data: folder that facm prepare wrote with this model.
    """


def of_model(recipe: str) -> Callable[[list[str], str], None]:
    """What runs ``facm RECIPE MODEL ...`` as ``facm train RECIPE --model MODEL ...``, into runs/NAME OF THE DATA, with
    the half of a pair in the name, or that it is a teacher."""
    suffix = "-teacher" if recipe == "finetune" else ""

    def run(words: list[str], prog: str) -> None:
        given = _with_model(words, prog)
        data = _value(given, "--data")
        if data is None and not HELP & set(words):
            raise ValueError(f"expected --data FOLDER, which facm prepare wrote, as in {prog} ./Z-Image --data data/z")
        if _value(given, "--out") is None and data is not None:
            half = _value(given, "--student") or _value(given, "--expert") or "one"
            name = (Path(data).name or recipe) + ("" if half == "one" else f"-{half}") + suffix
            given = [*given, "--out", str(Path("runs") / name)]
        if PROBE in given:
            _probe([recipe, *(word for word in given if word != PROBE)], prog)
        else:
            run_train([recipe, *given], prog.rpartition(" ")[0])

    return run


def _with_model(words: list[str], prog: str) -> list[str]:
    """``words`` with the model as an option. Raises ValueError where there is none, or a network in a Python file."""
    if words and re.search(r"\.py(:|$)", words[0]):
        raise ValueError(
            f"{prog} {words[0]}: expected the folder of a model of diffusers; a network of your own is distilled in "
            "Python, facm.distill(network, data) (docs/python.md), or as a recipe, facm train mine.py:run"
        )
    if words and not words[0].startswith("-"):
        return ["--model", words[0], *words[1:]]
    if not HELP & set(words) and _value(words, "--model") is None:
        raise ValueError(f"expected the folder of a model, as in {prog} ./Z-Image --data data/z")
    return words


def _value(words: Sequence[str], flag: str) -> str | None:
    for at, word in enumerate(words):
        if word == flag and at + 1 < len(words):
            return words[at + 1]
        if found := re.fullmatch(f"{flag}=(.*)", word):
            return found[1]
    return None


def _probe(words: list[str], prog: str) -> None:
    from facm.api.device import placed
    from facm.cli import recipe_options
    from facm.cli.train import TRAIN, train
    from facm.distributed.engine import Engine
    from facm.distributed.process_group import opened
    from facm.foundation.probe import probe
    from facm.training.checks import check

    _, options, run, _ = recipe_options.parse_recipe(train, words, prog.rpartition(" ")[0], TRAIN)
    with opened(Engine()) as ranks:
        world = placed(ranks, options.device)
        checked = check(run)
        if world.first:
            say_text(f"{probe(checked.run, checked.dataset, world.device)}\n")

"""Searched schedules: which moves at which times make samples of one network, for each number of evaluations.

A schedule belongs to the weights that it was searched for, which it names by their hash; ``facm schedule`` writes it
into RUN/schedule.json, and ``facm weights export`` into the metadata of the exported file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facm.core.files import TakenError, atomically
from facm.core.serialize import from_json, to_json, types_in
from facm.core.untrusted.door import parse_json, read_text
from facm.sampling.methods import Moves

FORMAT = 1
MOST_EVALUATIONS = 16
"""Network evaluations that schedules are searched for: with more of them, any is as good."""


@dataclass(frozen=True)
class Found:
    """What the search chose for one number of evaluations.

    method: the moves and their times.
    distance: of its samples from the data, on the noise of the search: it was chosen for being small, so that other
        noise gives a larger one.
    tried: schedules that were measured.
    defaults: the same distance of methods that need no search, by the name of their sampler.
    """

    method: Moves
    distance: float
    tried: int
    defaults: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """What was chosen for each number of evaluations, and for which network.

    network: sha256 of its weights; see :attr:`facm.pretrained.trained.Trained.identity`.
    which: which weights these are, in words.
    found: one for each number of evaluations.
    search: how it was searched: samples, seed, features, reference and versions.
    """

    network: str
    which: str
    found: tuple[Found, ...]
    search: Mapping[str, Any] = field(default_factory=dict)

    def method(self, nfe: int, network: str, where: str = "the schedule") -> Moves:
        """The method with ``nfe`` evaluations. Raises ValueError where it was searched for another network, or for
        other numbers of evaluations; where: what errors call the schedule."""
        if network != self.network:
            raise ValueError(
                f"{where} was searched for {self.which} with the sha256 {self.network[:16]}, and these weights have "
                f"{network[:16]}: expected a schedule of the same weights, by 'facm schedule'"
            )
        methods = {found.method.nfe: found.method for found in self.found}
        if nfe not in methods:
            raise ValueError(
                f"nfe = {nfe}, but {where} has none of so many evaluations; expected one of "
                f"{', '.join(map(str, sorted(methods)))}, or 'facm schedule' with this number, too"
            )
        return methods[nfe]


def spelled(schedule: Schedule) -> str:
    """The schedule as JSON."""
    found = [
        {
            "nfe": each.method.nfe,
            "method": to_json(each.method),
            "distance": each.distance,
            "tried": each.tried,
            "defaults": dict(each.defaults),
        }
        for each in schedule.found
    ]
    return json.dumps(
        {
            "format": FORMAT,
            "network": schedule.network,
            "which": schedule.which,
            "search": dict(schedule.search),
            "found": found,
        },
        indent=1,
    )


def parsed(text: str, where: str) -> Schedule:
    """The inverse of :func:`spelled`. Raises ValueError naming ``where`` for what is no schedule: another format, a
    number of evaluations that its moves do not have, times out of order."""
    content = parse_json(text, where)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{where} is no schedule of format {FORMAT}, expected a file that 'facm schedule' wrote")
    try:
        found = tuple(_found(each) for each in content["found"])
        schedule = Schedule(str(content["network"]), str(content["which"]), found, dict(content["search"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} is damaged, expected what 'facm schedule' wrote: {error}") from error
    numbers = [each.method.nfe for each in found]
    if len(set(numbers)) != len(numbers) or not numbers:
        raise ValueError(f"{where} has schedules of {numbers} evaluations, expected one for each number")
    return schedule


def _found(content: dict[str, Any]) -> Found:
    recorded = content["method"]
    if types_in(recorded) != {"facm.sampling:Moves"}:
        raise ValueError(f"method = {sorted(types_in(recorded))}, expected facm.sampling:Moves")
    method = from_json(recorded)
    if method.nfe != content["nfe"]:
        raise ValueError(f"nfe = {content['nfe']}, but its moves make {method.nfe} evaluations")
    distance, defaults = float(content["distance"]), {str(k): float(v) for k, v in content["defaults"].items()}
    if not all(map(math.isfinite, (distance, *defaults.values()))):
        raise ValueError(f"distance = {distance}, defaults = {defaults}, expected finite numbers")
    return Found(method, distance, int(content["tried"]), defaults)


def read_schedule(path: Path) -> Schedule:
    """The schedule in a file. Raises FileNotFoundError where there is none, ValueError for what is no schedule."""
    return parsed(read_text(path, links=False), str(path))


def write_schedule(path: Path, schedule: Schedule) -> None:
    """Write it completely or not at all. Raises ValueError where there is something at ``path``."""
    try:
        with atomically(path, new=True) as partial:
            partial.write_text(spelled(schedule) + "\n", encoding="utf-8")
    except TakenError as error:
        raise ValueError(
            f"{path} exists and is not overwritten: delete or move it to search again, or choose another name"
        ) from error

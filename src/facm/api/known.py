"""Parts of a run that are in no file, made known to this process: components of a notebook, and objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facm.core.component import shown
from facm.core.serialize import fingerprint
from facm.data.given import GivenData, given_data
from facm.networks.given import given_network
from facm.runs.config import Run
from facm.runs.folder import open_run


def made_known(run: Any = None, network: Any = None, data: Any = None, out: Path | None = None) -> None:
    """Let this process find them. out: the run's folder, which says how ``data`` were given.

    Raises ValueError for data that the run was not made with.
    """
    if run is not None:
        check_run(run)
        fingerprint(run)
    if network is not None:
        given_network(network)
    if data is None:
        return
    recorded = None if out is None else open_run(out)[1].data
    if not isinstance(recorded, GivenData):
        raise ValueError(f"data = {shown(data)}, and the run in {out} has data of its own; expected None")
    has_labels = recorded.num_classes is not None or recorded.conditioned
    again = given_data(data, recorded.num_classes, labels=has_labels)
    if again != recorded:
        raise ValueError(f"data are {again}, and the run was made with {recorded}: expected the same")


def check_run(run: Any) -> None:
    """Raise ValueError for anything but a run."""
    if not isinstance(run, Run):
        raise ValueError(f"run = {shown(run)}, expected a facm.Run, such as facm.recipes.digits.digits_teacher()")

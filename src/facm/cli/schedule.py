"""facm schedule."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from facm.api.device import in_precision, placed
from facm.cli.metric_options import MetricOptions
from facm.cli.network_options import NETWORK, NetworkOptions, SamplingOptions, check_number
from facm.cli.parsing import Advanced, Group
from facm.core.terminal import say
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from facm.core.objective import NetworkInterface
    from facm.evaluation.evaluator import Evaluator
    from facm.pretrained.trained import Trained


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """What is searched, and for how long."""

    num_steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """Network evaluations, 1 to 16: a schedule for each number."""
    num_samples: int = 1000
    """Samples that each schedule is measured with; the best few are measured again in four further draws."""
    trials: int = 12
    """Schedules that each of four compass searches may try, besides families as they are: the cost of the search."""
    batch_size: int = 256
    """Samples made at once."""
    seed: int = 0
    """Seed of the search's noise, from which one is derived that no evaluation draws."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu, cuda, or a GPU's number as in cuda:1."""
    out: Path | None = None
    """File to write, never one that exists; default: RUN/schedule.json, where --sampler searched finds it."""
    quiet: bool = False
    """Print nothing but errors."""

    def check(self) -> None:
        """Raise ValueError for what cannot be searched."""
        from facm.sampling.schedule import MOST_EVALUATIONS

        if not self.num_steps:
            raise ValueError("--num-steps is empty, expected at least one number of evaluations")
        if wrong := [k for k in self.num_steps if not 1 <= k <= MOST_EVALUATIONS]:
            raise ValueError(f"--num-steps {wrong[0]}, expected 1 to {MOST_EVALUATIONS}")
        if len(set(self.num_steps)) < len(self.num_steps):
            raise ValueError(f"--num-steps {' '.join(map(str, self.num_steps))} has a number twice, expected each once")
        if self.num_samples < 2:
            raise ValueError(f"--num-samples {self.num_samples}, expected at least 2 samples to measure")
        check_number(self.num_samples)
        for name in ("trials", "seed"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"--{name} {value}, expected 0 or more")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size}, expected at least 1")


SEARCH, METRICS = SearchOptions(), MetricOptions()


def schedule(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    options: Group[SearchOptions] = SEARCH,
    metrics: Advanced[Group[MetricOptions]] = METRICS,
    which: Advanced[Group[NetworkOptions]] = NETWORK,
) -> None:
    """Search, once, which moves at which times make a student's samples; facm sample --sampler searched uses them.

    Jumps by the shortcut and steps along the anchor's flow are chosen for each number of evaluations, by the Fréchet
    distance from the data on noise of the search's own.

    Args:
        run: the student's folder.
    """
    from facm.distributed.process_group import opened
    from facm.evaluation.evaluator import Evaluator
    from facm.evaluation.samples import Sampling
    from facm.evaluation.schedule_search import CONFIRM_WITH, Distance, search, seed_of_search
    from facm.runs.folder import RunFolder
    from facm.sampling.methods import Consistency
    from facm.sampling.schedule import Schedule, write_schedule

    options.check()
    if run.is_file():
        raise ValueError(f"{run} is a file, expected a run's folder: its schedule is exported with facm weights export")
    with opened(Engine()) as ranks:
        world = placed(ranks, options.device)
        trained = which.open(run, SamplingOptions())
        out = options.out or RunFolder(run).schedule
        if out.exists() or not out.parent.is_dir():
            what = "is in no folder that exists" if not out.exists() else "exists and is not overwritten"
            raise ValueError(
                f"{out} {what}: expected the name of a new file; delete or move the old one to search anew"
            )
        _check_student(run, trained.interface)
        identity = trained.identity
        decoder = which.decoder(trained, world.device)
        evaluator = metrics.judge(trained, decoder, world)
        if not isinstance(evaluator, Evaluator):
            raise ValueError(f"--clip {metrics.clip} alone, expected features to measure distances in")
        trained = in_precision(trained, "auto", world.device)
        sampling = Sampling(
            Consistency(1),
            options.num_samples,
            seed_of_search(options.seed),
            batch_size=options.batch_size,
            labels=metrics.labels,
            decoder=decoder,
        )
        distance = Distance(trained, sampling, evaluator)
        draws = [seed_of_search(options.seed, stage) for stage in range(1, CONFIRM_WITH + 1)]
        confirm = [Distance(trained, dataclasses.replace(sampling, seed=seed), evaluator) for seed in draws]
        found = []
        for nfe in options.num_steps:
            found.append(search(nfe, trained.interface.learns_flow, distance, options.trials, confirm))
            if world.first and not options.quiet:
                say(_line(found[-1]))
        if world.first:
            described = _described(options, trained, evaluator)
            write_schedule(out, Schedule(identity, trained.which, tuple(found), described))
            if not options.quiet:
                say(f"searched for {trained.which}: {out}")


def _check_student(run: Path, interface: NetworkInterface) -> None:
    """Raise ValueError for a network that does not jump to 1 from all times, such as a teacher."""
    from facm.sampling.methods import Consistency

    try:
        Consistency(1).check(interface)
    except ValueError as error:
        raise ValueError(f"{run}: expected a student, whose schedule is searched; {error}") from error


def _line(found: Any) -> str:
    defaults = ", ".join(f"{name} {distance:.4f}" for name, distance in found.defaults.items())
    moves = " ".join((*found.method.moves, "jump"))
    times = " ".join(f"{t:g}" for t in found.method.times)
    return (
        f"{found.method.nfe} evaluations: {found.distance:.4f} ({defaults}): {moves} at {times}, of {found.tried} tried"
    )


def _described(options: SearchOptions, trained: Trained, evaluator: Evaluator) -> dict[str, Any]:
    """How the schedules were searched, for the record."""
    from facm.runs.environment import environment

    return {
        "images": trained.images_seen,
        "checkpoint": trained.checkpoint_sha256,
        "seed": options.seed,
        "samples": options.num_samples,
        "trials": options.trials,
        "features": evaluator.extractor.identity,
        "reference": evaluator.reference.fingerprint,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "versions": environment()["versions"],
    }

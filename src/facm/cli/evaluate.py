"""facm evaluate | statistics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from facm.api.device import in_precision, placed, with_compiled_blocks
from facm.cli.metric_options import FeatureOptions, MetricOptions
from facm.cli.network_options import (
    NETWORK,
    SAMPLING,
    SOLVER,
    NetworkOptions,
    NetworkPath,
    SamplingOptions,
    SolverOptions,
    check_number,
)
from facm.cli.parsing import Advanced, Group
from facm.core.terminal import counting, say, warn
from facm.distributed.engine import Engine


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """How many samples make a row."""

    num_steps: tuple[int, ...] = (1, 2, 4)
    """Network evaluations for each sample, one row for each number."""
    num_samples: int = 10_000
    """Samples in each row; published FIDs have 50000."""
    frames_per_clip: int | None = None
    """Of a network that makes clips: measure so many frames of each, as images; default: all of them."""
    batch_size: int = 256
    """Samples made at once."""
    quiet: bool = False
    """Print nothing but errors."""

    def check(self) -> None:
        """Raise ValueError for what cannot be measured."""
        if self.num_samples < 2:
            raise ValueError(f"--num-samples {self.num_samples}, expected at least 2 samples to measure")
        check_number(self.num_samples)
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size}, expected at least 1")
        if self.frames_per_clip is not None and self.frames_per_clip < 1:
            raise ValueError(f"--frames-per-clip {self.frames_per_clip}, expected at least 1")
        if not self.num_steps:
            raise ValueError("--num-steps is empty, expected at least one number of evaluations")


EVALUATE, METRICS, FEATURES = EvaluateOptions(), MetricOptions(), FeatureOptions()


def evaluate(
    network: NetworkPath,
    options: Group[EvaluateOptions] = EVALUATE,
    how: Group[SamplingOptions] = SAMPLING,
    metrics: Group[MetricOptions] = METRICS,
    solver: Advanced[Group[SolverOptions]] = SOLVER,
    which: Advanced[Group[NetworkOptions]] = NETWORK,
) -> None:
    """Measure a run's newest network, or a published file's; rows with their provenance go to RUN/evaluations.jsonl.

    Against the run's own data in the features of a small classifier, unless --fid-stats, --real or features are given.

    Args:
        network: a run's folder, or a checkpoint file: published, exported or imported.
    """
    from facm.distributed.process_group import opened
    from facm.evaluation.evaluate import evaluate as measure
    from facm.evaluation.evaluator import Evaluator
    from facm.evaluation.row import append_row
    from facm.evaluation.samples import Sampling

    options.check()
    guidance, rows = solver.guidance(how.guidance_scale), []
    with opened(Engine()) as ranks:
        world = placed(ranks, how.device)
        trained = which.open(network, how)
        methods = [solver.method(trained, how.sampler, k) for k in options.num_steps]
        if world.first and not options.quiet:
            say(f"measuring {trained.which} of {trained.path} on {world.device}")
            if metrics.trains_a_classifier():
                say("their features are of a classifier of the data, trained now if it was not before: up to minutes")
        decoder = which.decoder(trained, world.device)
        progress = None if options.quiet else counting("samples")
        evaluator = metrics.judge(trained, decoder, world, progress, options.frames_per_clip)
        trained = with_compiled_blocks(in_precision(trained, how.precision, world.device), how.compile)
        n, batch_size = options.num_samples, options.batch_size
        for method in methods:
            sampling = Sampling(
                method, n, how.seed, guidance, batch_size, metrics.labels, decoder, options.frames_per_clip
            )
            rows.append(measure(trained, sampling, evaluator))
            append_row(trained, rows[-1], world)
    if world.first and not options.quiet:
        from facm.cli.show import evaluation_table

        evaluation_table([row.to_json() for row in rows])
        if isinstance(evaluator, Evaluator):
            _warn(rows[0].measurement.n, evaluator.reference.n, evaluator.extractor.num_features)


def _warn(n: int, n_reference: int | None, num_features: int) -> None:
    fewest = n if n_reference is None else min(n, n_reference)
    if fewest <= num_features:
        few = f"{fewest} images for {num_features} features"
        warn(f"warning: {few}: a covariance is singular and the distance means little")


def statistics(
    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    size: tuple[int, ...],
    out: Path,
    device: str = "auto",
    features: Group[FeatureOptions] = FEATURES,
) -> None:
    """Statistics of a folder of real images, to measure against with --fid-stats.

    Args:
        images: folder of images, which may be in sub-folders.
        size: side, or height and width, that they are cropped and resized to, which are those of the samples.
        out: npz to write. An existing file is not overwritten.
        device: where to compute: auto (a GPU if there is one), cpu, cuda, or a GPU's number as in cuda:1.
    """
    from facm.distributed.process_group import ALONE
    from facm.evaluation import Inception, build_reference, save_reference
    from facm.evaluation.choose import folder_of_images

    if out.exists():
        raise ValueError(f"--out {out} exists and is not overwritten; choose another name")
    if not 1 <= len(size) <= 2:
        raise ValueError(f"--size {' '.join(map(str, size))}, expected a side, or height and width")
    world = placed(ALONE, device)
    dataset = folder_of_images(images, size[0], size[-1])
    extractor = (features.chosen() or Inception("")).build(dataset, world.device)
    save_reference(build_reference(dataset, extractor), out)
    say(f"{len(dataset)} images in {extractor.identity}: {out}")

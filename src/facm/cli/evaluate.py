"""facm evaluate | statistics."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from facm.cli.metric_options import FeatureOptions, JudgeOptions, folder_of_images
from facm.cli.network_options import FILE, SAMPLING, FileOptions, SamplingOptions
from facm.cli.terminal import counting
from facm.distributed.engine import Engine

JUDGE = JudgeOptions()
FEATURES = FeatureOptions()


def evaluate(
    run: Annotated[Path | None, tyro.conf.Positional] = None,
    file: Annotated[FileOptions, tyro.conf.arg(name="")] = FILE,
    options: Annotated[SamplingOptions, tyro.conf.arg(name="")] = SAMPLING,
    judging: Annotated[JudgeOptions, tyro.conf.arg(name="")] = JUDGE,
    nfe: tuple[int, ...] = (1, 2, 4),
    n: int = 10_000,
    batch: int = 256,
    quiet: bool = False,
) -> None:
    """Measure a run's newest network, or a published file's; rows with their provenance go to RUN/evaluations.jsonl.

    Against the run's own data in the features of a small classifier, unless --fid-stats, --real or features are given.

    Args:
        run: the run's folder.
        nfe: network evaluations a sample, one row for each.
        n: samples for each row; published FIDs have 50000.
        batch: samples made at once.
        quiet: print nothing but errors.
    """
    from facm.distributed.process_group import opened
    from facm.evaluation.evaluate import evaluate as measure
    from facm.evaluation.row import append_row
    from facm.evaluation.samples import Sampling

    if n < 2:
        raise ValueError(f"--n {n}, expected at least 2 samples to measure")
    if batch < 1:
        raise ValueError(f"--batch {batch}, expected at least 1")
    if not nfe:
        raise ValueError("--nfe is empty, expected at least one number of evaluations")
    guidance, rows = options.guidance(), []
    with opened(Engine()) as world:
        trained = file.open(run, options)
        methods = [options.method(trained, k) for k in nfe]
        decoder = file.decoder(trained, world.device)
        evaluator = dataclasses.replace(
            judging.judge(trained, decoder, world),
            quantise=judging.quantise,
            small_n=judging.small_n,
            progress=None if quiet else counting("samples"),
        )
        for method in methods:
            sampling = Sampling(method, n, options.seed, guidance, batch, judging.labels, decoder)
            rows.append(measure(trained, sampling, evaluator))
            append_row(trained, rows[-1], world)
    if world.first and not quiet:
        from facm.cli.show_run import evaluation_table

        evaluation_table([row.to_json() for row in rows])
        _warn(n, evaluator.reference.n, evaluator.extractor.num_features)


def _warn(n: int, n_reference: int | None, num_features: int) -> None:
    fewest = n if n_reference is None else min(n, n_reference)
    if fewest <= num_features:
        print(
            f"warning: {fewest} images for {num_features} features: a covariance is singular and the distance means "
            "little",
            file=sys.stderr,
        )


def statistics(
    images: Annotated[Path, tyro.conf.Positional],
    size: int,
    out: Path,
    features: Annotated[FeatureOptions, tyro.conf.arg(name="")] = FEATURES,
) -> None:
    """Statistics of a folder of real images, to measure against with --fid-stats.

    Args:
        images: folder of images, in folders or not.
        size: side that they are cropped and resized to, as the samples have it.
        out: npz to write. A file that exists is not overwritten.
    """
    import torch

    from facm.evaluation import Inception, build_reference, save_reference

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if out.exists():
        raise ValueError(f"--out {out} exists and is not overwritten; choose another name")
    dataset = folder_of_images(images, size)
    extractor = (features.chosen() or Inception("")).build(dataset, device)
    save_reference(build_reference(dataset, extractor), out)
    print(f"{len(dataset)} images in {extractor.identity}: {out}")

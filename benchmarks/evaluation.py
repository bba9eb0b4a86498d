"""What measuring costs: this package's streaming evaluation beside the obvious one, with FID's Inception network.

    python benchmarks/evaluation.py --n 64                                  # random weights: the cost is the same
    python benchmarks/evaluation.py --weights inception.pth --n 50000       # with --json to keep the rows

Images come from a stub (random bytes of --size pixels a side), so that only measuring is timed. Each way runs in a
process of its own, and prints one JSON row: seconds, CPU seconds, images a second, and the peak of the resident set
above what the process held with the network loaded. "streaming": batches go through Measure. "naive": all images are
kept as float64, features are taken at the end, and the distance is by scipy's sqrtm.

The random weights need a file of 95 MB in a temporary folder.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facm.evaluation import Inception, Measure, MeasureSettings, Reference
from facm.evaluation.inception import _port


def stub(n: int, size: int, batch: int) -> Iterator[Tensor]:
    """Images (B, 3, size, size) in [-1, 1], as a sampler would give them."""
    rng = torch.Generator().manual_seed(0)
    for start in range(0, n, batch):
        yield torch.rand(min(batch, n - start), 3, size, size, generator=rng) * 2 - 1


def random_weights(path: Path) -> Path:
    """A file that the Inception network can be built from."""

    class Blank(_port().FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True, assign=False):
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.save(Blank("blank", ["2048"], feature_extractor_weights_path=nothing).state_dict(), path)
    return path


def streaming(network, reference: Reference, n: int, size: int, batch: int) -> float:
    measure = Measure(network, reference, n=n, settings=MeasureSettings(small_n=True))
    for x in stub(n, size, batch):
        measure.update(x)
    return measure.result().frechet_distance


def naive(network, reference: Reference, n: int, size: int, batch: int) -> float:
    import scipy.linalg

    images = np.concatenate([x.double().numpy() for x in stub(n, size, batch)])
    images = np.round((images + 1) * 127.5) / 127.5 - 1
    with torch.no_grad():
        found = np.concatenate(
            [network(torch.from_numpy(images[k : k + batch]).float()).numpy() for k in range(0, n, batch)]
        ).astype(np.float64)
    mean, covariance = found.mean(0), np.cov(found, rowvar=False)
    root = scipy.linalg.sqrtm(covariance @ reference.covariance.numpy())
    shift = mean - reference.mean.numpy()
    return float(shift @ shift + np.trace(covariance) + reference.covariance.trace() - 2 * np.trace(root).real)


def one(way: str, options: argparse.Namespace) -> dict[str, object]:
    """The row of one way, measured in this process."""
    network = Inception(options.weights).build()
    f = network.num_features
    rng = torch.Generator().manual_seed(1)
    factor = torch.randn(f, 2 * f, generator=rng, dtype=torch.float64) / (2 * f) ** 0.5
    zero = torch.zeros(f, dtype=torch.float64)
    reference = Reference(zero, factor @ factor.T, torch.zeros(0, f), 50_000, None, "stub", network.identity)
    network(torch.zeros(2, 3, options.size, options.size))
    held, began, cpu = resident(), time.perf_counter(), time.process_time()
    distance = {"streaming": streaming, "naive": naive}[way](network, reference, options.n, options.size, options.batch)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held
    return {
        "way": way,
        "n": options.n,
        "size": options.size,
        "batch": options.batch,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "images_per_second": round(options.n / seconds, 3),
        "peak_mb_above_start": round(peak / 1e6, 1),
        "distance": distance,
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
    }


def resident() -> int:
    """Bytes of the resident set now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="", help="Inception weights; default: random ones")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    parser.add_argument("--way", choices=("streaming", "naive"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(one(options.way, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights or str(random_weights(Path(folder) / "random.pth"))
        for way in ("streaming", "naive"):
            numbers = ["--n", str(options.n), "--size", str(options.size), "--batch", str(options.batch)]
            command = [sys.executable, __file__, "--way", way, "--weights", weights, *numbers]
            row = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
            print(row, flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(row + "\n")


if __name__ == "__main__":
    main()

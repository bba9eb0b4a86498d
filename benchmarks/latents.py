"""Reading latents against the disk and the obvious reader, preparing them against the obvious loop; one run.

    python benchmarks/latents.py --json results/latents.json         # about 300 MB in a temporary folder, 2 minutes
    python benchmarks/latents.py --shape 32 16 16 --n 4000           # VA-VAE's latents of 256 x 256 pixels

Reading, in items/s, batches in random order; rounds of all are interleaved, medians of wall and CPU seconds:

    stream        Stream(Latents(...)), checked and standardised
    ahead         the same through batches, with one process that reads ahead
    read          LatentShards.read_mirrored alone, without the checks
    naive         safetensors' safe_open and get_slice for every item, then (x - mean) / std, as public readers do
    sequential    the files' bytes read in their order, 1 MiB at a time: what the disk and its cache give
    pread         as many bytes as an item has at random places, and nothing else

``--cold`` has the system forget the files before each round (posix_fadvise). Preparing, in images/s, with a small
convolutional encoder and JPEG photographs made of noise: ``prepare`` against one image decoded and encoded at a time,
without threads that decode.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from facm.core.hashing import identity_of
from facm.data import Stream
from facm.data import batches as read_ahead
from facm.data.crop import centre_crop
from facm.data.in_memory import from_bytes
from facm.data.pictures import FolderPictures
from facm.latents import Latents
from facm.latents.prepare import prepare
from facm.latents.shards import mapped, shard_files


class Encoder(nn.Module):
    """Three strided convolutions: about 0.1 GFLOP for 256 x 256 pixels."""

    channels, factor = 4, 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, 4))]
        self.layers = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2]).eval()
        self.identity = identity_of("small", self)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        z = self.layers(x)
        return z if noise is None else z + 0.1 * noise

    def decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class SmallEncoder:
    def build(self) -> Encoder:
        return Encoder()


def write_latents(folder: Path, n: int, shards: int, shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    for k in range(shards):
        plain, mirrored = torch.randn(2, n // shards, *shape, generator=rng)
        labels = torch.randint(1000, (n // shards,), generator=rng)
        tensors = {"latents": plain, "latents_flip": mirrored, "labels": labels}
        save_file(tensors, folder / f"latents_rank00_shard{k:03d}.safetensors")
    constant = {"mean": torch.zeros(1, shape[0], 1, 1), "std": torch.ones(1, shape[0], 1, 1)}
    torch.save(constant, folder / "latents_stats.pt")


class Naive:
    """A file opened for each item, a slice of each tensor that is needed."""

    def __init__(self, folder: Path) -> None:
        self.places: list[tuple[Path, int]] = []
        for path in shard_files(folder):
            with safe_open(path, "pt") as file:
                self.places += [(path, i) for i in range(file.get_slice("labels").get_shape()[0])]
        both = torch.load(folder / "latents_stats.pt", weights_only=True)
        self.mean, self.std = both["mean"], both["std"]

    def item(self, index: int, mirrored: bool) -> tuple[Tensor, Tensor]:
        path, row = self.places[index]
        with safe_open(path, "pt") as file:
            x = file.get_slice("latents_flip" if mirrored else "latents")[row : row + 1]
            label = file.get_slice("labels")[row : row + 1]
        return ((x - self.mean) / self.std).squeeze(0), label.squeeze(0)

    def batch(self, indices: np.ndarray, mirrored: np.ndarray) -> tuple[Tensor, Tensor]:
        items = [self.item(int(i), bool(m)) for i, m in zip(indices, mirrored, strict=True)]
        return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


def readers(folder: Path, n: int, batch: int, item_bytes: int) -> dict[str, Callable[[], object]]:
    """Ways to read n items; the files' own bytes where items are not the unit."""
    data = Latents(str(folder)).open()
    stream = Stream(data, 0, batch)
    naive = Naive(folder)
    rng = np.random.default_rng(0)
    order, flags = rng.permutation(len(data))[:n], rng.random(n) < 0.5
    batches = [slice(k, k + batch) for k in range(0, n, batch)]
    files = shard_files(folder)

    def sequential() -> None:
        left = n * item_bytes
        for path in files:
            with path.open("rb", buffering=0) as file:
                while left > 0 and (part := file.read(1 << 20)):
                    left -= len(part)

    places = [(int(rng.integers(len(files))), float(rng.random())) for _ in range(n)]
    sizes = [path.stat().st_size for path in files]

    def pread() -> None:
        handles = [os.open(path, os.O_RDONLY) for path in files]
        for k, where in places:
            os.pread(handles[k], item_bytes, int(where * (sizes[k] - item_bytes)))
        for handle in handles:
            os.close(handle)

    same = naive.batch(order[:batch], flags[:batch])
    ours = data.read_mirrored(order[:batch], flags[:batch])
    if not (torch.equal(same[0], ours.x_1) and torch.equal(same[1], ours.cond)):
        raise SystemExit("the readers differ")
    return {
        "stream": lambda: [stream.at(s.start) for s in batches],
        "ahead": lambda: list(read_ahead(stream, 0, n, workers=1)) and None,
        "read": lambda: [data.read_mirrored(order[s], flags[s]) for s in batches] and None,
        "naive": lambda: [naive.batch(order[s], flags[s]) for s in batches] and None,
        "sequential": sequential,
        "pread": pread,
    }


def photographs(folder: Path, n: int) -> None:
    """JPEGs of about ImageNet's size."""
    rng = np.random.default_rng(0)
    for i in range(n):
        path = folder / f"class{i % 4}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough = Image.fromarray(rng.integers(256, size=(38, 50, 3), dtype=np.uint8))
        rough.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def naive_prepare(source: FolderPictures, out: Path, size: int) -> None:
    """One image at a time, one shard at the end."""
    encoder, pictures = SmallEncoder().build(), source.open()
    rows: dict[str, list[Tensor]] = {"latents": [], "latents_flip": []}
    with torch.no_grad():
        for i in range(len(pictures)):
            x = torch.from_numpy(from_bytes(centre_crop(pictures.image(i), size).transpose(2, 0, 1)))[None]
            for name, image in (("latents", x), ("latents_flip", x.flip(-1))):
                rows[name].append(encoder.encode(image, torch.randn(1, 4, size // 8, size // 8)))
    tensors = {name: torch.cat(parts) for name, parts in rows.items()}
    out.mkdir()
    save_file(tensors | {"labels": torch.from_numpy(pictures.labels)}, out / "latents_rank00_shard000.safetensors")
    for value in tensors.values():
        value.mean((0, 2, 3)), value.std((0, 2, 3))


def measured(ways: dict[str, Callable[[], object]], rounds: int, n: int, before: Callable[[], None]) -> list[dict]:
    """Each way in turn, ``rounds`` times: medians."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            before()
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    rows = []
    for name, values in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        rows.append({"way": name, "n": n, "wall_s": wall, "cpu_s": cpu, "per_s": n / wall, "us_each": 1e6 * cpu / n})
    return rows


def forget(folder: Path) -> None:
    """Have the system drop the files from its cache, where it does as asked."""
    mapped.cache_clear()  # what is mapped is kept
    for path in shard_files(folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)  # and so is what is not yet written
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(32, 16, 16), help="of a latent (C, h, w)")
    parser.add_argument("--n", type=int, default=4000, help="latents, in --shards files")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's")
    parser.add_argument("--cold", action="store_true", help="forget the files before each round of reading")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where: dict[str, Any] = {
        "command": sys.argv,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "latents"
        folder.mkdir()
        write_latents(folder, options.n, options.shards, tuple(options.shape))
        item_bytes = 4 * int(np.prod(options.shape))
        n = options.n // options.batch * options.batch
        ways = readers(folder, n, options.batch, item_bytes)
        reading = measured(ways, options.rounds, n, lambda: forget(folder) if options.cold else None)
        photographs(Path(temporary) / "photos", options.images)
        source, made = FolderPictures(str(Path(temporary) / "photos")), iter(range(1000))
        loops = {
            "prepare": lambda: prepare(source, SmallEncoder(), Path(temporary) / f"{next(made)}", size=options.size),
            "naive loop": lambda: naive_prepare(source, Path(temporary) / f"{next(made)}", options.size),
        }
        preparing = measured(loops, options.rounds, options.images, lambda: None)
    for title, rows, base in (("items", reading, "naive"), ("images", preparing, "naive loop")):
        reference = next(row for row in rows if row["way"] == base)
        print(f"{title:12}{'per s':>12}{'against naive':>15}{'CPU us each':>13}{'against naive':>15}")
        for row in rows:
            row["speed"], row["cpu"] = reference["wall_s"] / row["wall_s"], row["cpu_s"] / reference["cpu_s"]
            print(f"{row['way']:12}{row['per_s']:12.0f}{row['speed']:15.2f}{row['us_each']:13.1f}{row['cpu']:15.2f}")
    result = {**where, "item_bytes": item_bytes, "batch": options.batch, "reading": reading, "preparing": preparing}
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

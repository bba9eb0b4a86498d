"""Small parts that the tests of latents share: an autoencoder without weights to download, and folders of latents."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from facm.core.hashing import identity_of


class Pooling(nn.Module):
    """The average over 4 x 4 pixels and a fixed 1 x 1 convolution; a posterior of standard deviation 0.1."""

    channels, factor = 4, 4

    def __init__(self, gain: float, fault: str) -> None:
        super().__init__()
        self.register_buffer("weight", gain * torch.linspace(-1, 1, 12).reshape(4, 3, 1, 1))
        self.fault = fault
        self.identity = identity_of("pooling", self)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        z = nn.functional.conv2d(nn.functional.avg_pool2d(x, self.factor), self.weight)
        z = z if noise is None else z + 0.1 * noise
        if self.fault == "NaN":
            z[x.amax((1, 2, 3)) < -0.9] = torch.nan
        return z[:, :3] if self.fault == "channels" else z

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :3].repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


@dataclass(frozen=True)
class PoolingConfig:
    """path stands for where weights are: it changes nothing."""

    gain: float = 1.0
    path: str = ""
    fault: str = ""

    def build(self) -> Pooling:
        return Pooling(self.gain, self.fault)


def photo(seed: int, width: int = 20, height: int = 17) -> Image.Image:
    """Coloured noise on a gradient, not alike when mirrored."""
    values = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    return Image.fromarray((values + np.linspace(0, 127, width)[None, :, None]).astype(np.uint8))


def photos(folder: Path, classes: int = 3, each: int = 4) -> Path:
    """Lossless images in ``classes`` folders, of several sizes."""
    for k in range(classes):
        (folder / f"n{k:04d}").mkdir(parents=True)
        for i in range(each):
            photo(10 * k + i, 18 + i, 16 + k).save(folder / f"n{k:04d}" / f"{i}.png")
    return folder


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            file.addfile(header, io.BytesIO(content))
    return path


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def latents(
    folder: Path,
    counts: tuple[int, ...] = (5, 3),
    shape: tuple[int, ...] = (4, 3, 2),
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Shards of normals, labels 0, 1, .. and statistics in the reference's format; all of their tensors."""
    rng = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = []
    for k, n in enumerate(counts):
        latents, latents_flip = torch.randn(2, n, *shape, generator=rng).to(dtype)
        labels = torch.arange(sum(counts[:k]), sum(counts[: k + 1]))
        parts.append({"latents": latents, "latents_flip": latents_flip, "labels": labels})
        save_file(parts[-1], folder / f"latents_rank00_shard{k:03d}.safetensors")
    mean, std = torch.linspace(-1, 1, shape[0]), torch.linspace(1, 2, shape[0])
    torch.save({"mean": mean.reshape(1, -1, 1, 1), "std": std.reshape(1, -1, 1, 1)}, folder / "latents_stats.pt")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def change(file: Path, **tensors: Tensor | None) -> None:
    """Replace, add or leave out (None) tensors of a safetensors file."""
    content = {**load_file(file), "crc32": None, **tensors}  # as other programs write them
    save_file({name: value.contiguous() for name, value in content.items() if value is not None}, file)

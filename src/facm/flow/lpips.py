"""LPIPS (Zhang et al., arXiv 1801.03924) with VGG: the distance of consistency distillation (arXiv 2303.01469).

    d(x, y) = sum_l mean_hw sum_c w_lc (phi_lc(x) - phi_lc(y))^2        phi_l: features of layer l, of unit length

The features are those before each pooling of a VGG, and the last. Its weights and the linear ones w come from local
files: nothing is downloaded, and torchvision is not needed, which torchmetrics' own LPIPS loads the network through.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facm.core.component import Range, component
from facm.core.tensors import check_same_shape
from facm.core.untrusted.torch_files import read_foreign
from facm.flow.distances import Distance

NETWORK = "the weights of a VGG as torchvision saves them (vgg16-397923af.pth)"
LINEAR = "the linear weights of LPIPS for it, lin0.model.1.weight and so on (lpips_models/vgg.pth of torchmetrics)"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What LPIPS takes from images in [-1, 1], and divides them by."""
EPS = 1e-8


@dataclass(frozen=True)
@component
class LPIPS(Distance):
    """LPIPS of images (B, 3, H, W) in [-1, 1]; grey ones (B, 1, H, W) count as three equal channels.

    For predictions that are images: DiscreteCM(..., distance=LPIPS("vgg16-397923af.pth")). The files are read at the
    first use. Raises ValueError there for a file that is missing or holds something else, and for other shapes.
    """

    weights: str
    """Local file of the VGG's weights, as torchvision saves them: vgg16-397923af.pth."""
    linear: str = ""
    """Local file of the linear weights; "": those that come with torchmetrics, where it is installed."""
    resize: Annotated[int, Range("[1, 65536]")] | None = 224
    """Side that smaller images are enlarged to, bilinearly, as consistency distillation does; None: as they are."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_same_shape(prediction=prediction, target=target)
        if prediction.ndim != 4 or prediction.shape[1] not in (1, 3):
            raise ValueError(
                f"LPIPS: samples of shape {tuple(prediction.shape[1:])}, expected images (3, H, W) or (1, H, W): "
                "latents have no such distance"
            )
        network = _network(self.weights, self.linear, prediction.device)
        return network(self._enlarged(prediction), self._enlarged(target))

    def _enlarged(self, x: Tensor) -> Tensor:
        x = x.float().expand(-1, 3, -1, -1)
        if self.resize is None or min(x.shape[2:]) >= self.resize:
            return x
        return functional.interpolate(x, size=(self.resize, self.resize), mode="bilinear", align_corners=False)


class _Network(nn.Module):
    """blocks: of convolutions, with a pooling between two of them. linear: (1, C, 1, 1) for each of them."""

    def __init__(self, blocks: list[list[tuple[Tensor, Tensor]]], linear: list[Tensor]) -> None:
        super().__init__()
        self.sizes = [len(block) for block in blocks]
        flat = [tensor for block in blocks for pair in block for tensor in pair]
        for name, tensors in (("convolution", flat), ("linear", linear)):
            for index, tensor in enumerate(tensors):
                self.register_buffer(f"{name}{index}", tensor.detach().float().clone())
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        parts = [
            (self.get_buffer(f"linear{index}") * (a - b).square()).sum(1).mean((1, 2))
            for index, (a, b) in enumerate(zip(self._features(x), self._features(y), strict=True))
        ]
        return torch.stack(parts).sum(0)

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        h, index = (x - self.get_buffer("shift")) / self.get_buffer("scale"), 0
        for place, size in enumerate(self.sizes):
            h = functional.max_pool2d(h, 2) if place else h
            for _ in range(size):
                weight, bias = (self.get_buffer(f"convolution{index + k}") for k in (0, 1))
                h, index = functional.conv2d(h, weight, bias, padding=1).relu(), index + 2
            yield h / (h.square().sum(1, keepdim=True) + EPS).sqrt()


@functools.lru_cache(maxsize=4)
def _network(weights: str, linear: str, device: torch.device) -> _Network:
    blocks = _blocks(_tensors(Path(weights), NETWORK), weights)
    file = Path(linear) if linear else _of_torchmetrics()
    found = _tensors(file, LINEAR)
    lines = [found.get(f"lin{k}.model.1.weight") for k in range(len(blocks))]
    wanted = [(1, block[-1][0].shape[0], 1, 1) for block in blocks]
    if [None if line is None else tuple(line.shape) for line in lines] != wanted:
        raise ValueError(
            f"{file} does not fit {weights}, whose features have {[w[1] for w in wanted]} channels: {LINEAR}"
        )
    return _Network(blocks, [line for line in lines if line is not None]).to(device)


def _tensors(file: Path, what: str) -> Mapping[str, Tensor]:
    content: Any = read_foreign(file, what)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} holds more than named tensors, or less; expected {what}")
    return content


def _blocks(state: Mapping[str, Tensor], file: str) -> list[list[tuple[Tensor, Tensor]]]:
    """Pairs of weight and bias: a convolution two places after the one before follows its activation, three places
    after it a pooling."""
    names = [name.split(".") for name in state]
    places = sorted(int(n[1]) for n in names if n[0] == "features" and n[-1] == "weight" and n[1].isdecimal())
    blocks: list[list[tuple[Tensor, Tensor]]] = []
    for index, place in enumerate(places):
        weight, bias = state[f"features.{place}.weight"], state.get(f"features.{place}.bias")
        gap = place - places[index - 1] if index else 3
        before = 3 if not index else len(state[f"features.{places[index - 1]}.weight"])
        if gap not in (2, 3) or bias is None or tuple(weight.shape[1:]) != (before, 3, 3):
            raise ValueError(f"{file}: features.{place} is no convolution of a VGG; expected {NETWORK}")
        if gap == 3:
            blocks.append([])
        blocks[-1].append((weight, bias))
    if not blocks or places[0]:
        raise ValueError(f"{file} has no features.0.weight; expected {NETWORK}")
    return blocks


def _of_torchmetrics() -> Path:
    found = importlib.util.find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise ValueError(f"LPIPS: linear = '' and torchmetrics is not installed; expected a file of {LINEAR}")
    return Path(found.origin).parent / "functional" / "image" / "lpips_models" / "vgg.pth"

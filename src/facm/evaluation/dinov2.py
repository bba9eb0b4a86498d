"""The features of FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facm.core.hashing import file_sha256
from facm.core.types import Dataset
from facm.evaluation.features import check_positive
from facm.evaluation.transformers_folder import check_config

_SIDE = 224
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_LARGE = (1024, 24, 14)  # ViT-L/14: hidden size, layers, patch


@dataclass(frozen=True)
class DINOv2:
    """A DINOv2 vision transformer from a local folder, in transformers' format (config.json, model.safetensors; e.g. a
    copy of facebook/dinov2-large).

    For RGB images (3, H, W) of any size: resized to 224 x 224 (bicubic with antialiasing, back to 8 bits), ImageNet's
    normalisation; features: the class token after the last layer norm.

    FD-DINOv2 is the Frechet distance with ViT-L/14 (1024 features), and only that one is called so. The same as in the
    authors' dgm-eval: network, resizing filter, size, normalisation, token. What may differ: they resize with Pillow,
    whose result is within one of 256 levels of this one, and load the network from torch.hub, whose interpolation of
    the position embedding for 16 x 16 patches is not exactly transformers'. Compare within one program.

    path: the folder.
    block: images in the network at a time.
    """

    path: str
    block: int = 64

    def __post_init__(self) -> None:
        check_positive(block=self.block)

    def build(self, dataset: Dataset | None = None, device: torch.device | str = "cpu") -> DINOv2Network:
        """Raises ValueError naming what is missing: transformers, the folder, its weights, or the three channels."""
        if dataset is not None and (len(dataset.shape) != 3 or dataset.shape[0] != 3):
            raise ValueError(f"DINOv2: samples of shape {tuple(dataset.shape)}, expected RGB images (3, H, W)")
        folder = Path(self.path)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: there is no such file; expected a local copy of a DINOv2 model")
        try:
            from safetensors import SafetensorError
            from transformers import Dinov2Config, Dinov2Model
        except ImportError as error:
            raise ValueError(
                f"DINOv2 needs transformers, which does not import ({error}): pip install 'facm[eval]'"
            ) from error
        wanted = "expected a local copy of a DINOv2 model"
        check_config(folder, "dinov2", "DINOv2", wanted, Dinov2Config, Dinov2Model)
        try:
            loaded: Any = Dinov2Model.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{folder} cannot be read ({error}); {wanted}") from error
        network, said = loaded
        wrong = [*said["missing_keys"], *(str(key) for key in said["mismatched_keys"])]
        if wrong:  # transformers would go on with random numbers in their place
            raise ValueError(f"{folder} lacks weights of a DINOv2 model: {', '.join(sorted(wrong)[:5])}")
        weights = file_sha256(folder / "model.safetensors")[:16]
        return DINOv2Network(network, weights, self.block).to(device)


class DINOv2Network(nn.Module):
    """x (B, 3, H, W) in [-1, 1] -> features (B, hidden size). weights: hash of their file."""

    num_classes: int | None = None

    def __init__(self, network: Any, weights: str, block: int = 64) -> None:
        super().__init__()
        shape = network.config
        self.network: nn.Module = network.requires_grad_(False).eval()
        self.block = block
        self.num_features: int = shape.hidden_size
        large = (shape.hidden_size, shape.num_hidden_layers, shape.patch_size) == _LARGE
        self.metric_names: Mapping[str, str] = {"frechet_distance": "FD-DINOv2"} if large else {}
        # Of the file, not of the module: the names of its parameters change with the version of transformers.
        self.identity = f"dinov2-{shape.hidden_size}x{shape.num_hidden_layers}-{shape.patch_size}-{weights}"
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).reshape(3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"DINOv2: x has shape {tuple(x.shape)}, expected RGB images (B, 3, H, W)")
        found = []
        with torch.autocast(x.device.type, enabled=False):
            for part in x.float().split(self.block):
                pixels = (resized(part) - self.mean) / self.std
                found.append(self.network(pixel_values=pixels).last_hidden_state[:, 0])
        return torch.cat(found)

    def train(self, mode: bool = True) -> DINOv2Network:
        """Stays in eval mode: its drop-path would make features random."""
        return super().train(False)

    def classify(self, x: Tensor) -> Tensor:
        raise TypeError("DINOv2 does not classify (num_classes is None)")


def resized(x: Tensor) -> Tensor:
    """x (B, 3, H, W) in [-1, 1] -> (B, 3, 224, 224) in [0, 1], on 256 levels.

    As Pillow does it: along the width, to bytes, along the height, to bytes. The bytes between clip what overshoots.
    """
    levels = (x + 1) * 127.5
    for size in ((x.shape[2], _SIDE), (_SIDE, _SIDE)):
        levels = F.interpolate(levels, size=size, mode="bicubic", antialias=True, align_corners=False)
        levels = levels.round().clamp(0, 255)
    return levels / 255

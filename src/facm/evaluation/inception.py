"""FID's Inception network, torch-fidelity's port of it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from facm.core.hashing import identity_of
from facm.core.state_dict import without_wrappers
from facm.core.types import Dataset
from facm.core.untrusted.torch_files import read_foreign
from facm.evaluation.bare_import import torch_fidelity_importable
from facm.evaluation.features import check_positive

_NAME = "inception-v3-torch-fidelity"
_SHA256 = "6726825d"  # how the sha256 of the published weights begins; the end of their file's name says so
_LAYERS = ("2048", "logits_unbiased")  # what torch-fidelity takes for FID and KID, and for the Inception score
_WANTED = "the Inception weights of torch-fidelity or pytorch-fid (weights-inception-2015-12-05-6726825d.pth)"


@dataclass(frozen=True)
class Inception:
    """The network of FID, KID and the Inception score: TensorFlow's Inception-v3 of 2015-12-05, by torch-fidelity.

    For RGB images (3, H, W) of any size: resized to 299 x 299 as TensorFlow 1 does, in float32. Features (B, 2048), the
    last average pooling. A grey image is not made RGB: do that in the data set, and say so.

    weights: a local .pth; "": torch-fidelity's, downloaded into PyTorch's hub folder at the first use and checked
        against their hash.
    block: images in the network at a time.
    """

    weights: str = ""
    block: int = 64

    def __post_init__(self) -> None:
        check_positive(block=self.block)

    def build(self, dataset: Dataset | None = None, device: torch.device | str = "cpu") -> InceptionNetwork:
        """Raises ValueError naming what is missing: torch-fidelity, the file, its keys, or three channels."""
        if dataset is not None and (len(dataset.shape) != 3 or dataset.shape[0] != 3):
            raise ValueError(f"Inception: samples of shape {tuple(dataset.shape)}, expected RGB images (3, H, W)")
        port = _port()
        path = Path(self.weights) if self.weights else _downloaded(port)
        weights = read_foreign(path, _WANTED)
        if not isinstance(weights, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
        ):
            raise ValueError(f"{path} holds more than named tensors, or less; expected {_WANTED}")
        # The port reads weights with a loader that runs whatever a file says. Hence it is given our own copy of what
        # has been read safely.
        copy = io.BytesIO()
        torch.save(without_wrappers(weights, str(path)), copy)
        copy.seek(0)
        try:
            network = port.FeatureExtractorInceptionV3(_NAME, list(_LAYERS), feature_extractor_weights_path=copy)
        except RuntimeError as error:  # keys or shapes that do not match
            first = str(error).splitlines()[1].strip()[:100]
            raise ValueError(f"{path} does not fit ({first} ...); expected {_WANTED}") from None
        with path.open("rb") as file:
            published = hashlib.file_digest(file, "sha256").hexdigest().startswith(_SHA256)
        return InceptionNetwork(network, self.block, published).to(device)


class InceptionNetwork(nn.Module):
    """x (B, 3, H, W) in [-1, 1], on the 256 levels -> features (B, 2048).

    published: whether the weights are the published file, byte for byte.
    """

    num_features = 2048
    num_classes: int | None = None  # its 1008 logits are not in any data set's order
    metric_names: ClassVar[dict[str, str]] = {"frechet_distance": "FID", "kid": "KID", "inception_score": "IS"}

    def __init__(self, network: nn.Module, block: int = 64, published: bool = False) -> None:
        super().__init__()
        self.network = network
        self.block = block
        self.published = published
        self.identity = identity_of(_NAME, network)

    def forward(self, x: Tensor) -> Tensor:
        return self.features_and_logits(x)[0]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 2048) and logits without bias (B, 1008), from one pass."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"Inception: x has shape {tuple(x.shape)}, expected RGB images (B, 3, H, W)")
        levels = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        # TensorFloat-32, PyTorch's default for convolutions on a GPU, would change the features' third digit.
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            torch.autocast(x.device.type, enabled=False),
        ):
            found = [self.network(part) for part in levels.split(self.block)]
        features, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
        return features, logits

    def train(self, mode: bool = True) -> InceptionNetwork:
        """Stays in eval mode: batch statistics would make a sample's features those of its company."""
        return super().train(False)

    def classify(self, x: Tensor) -> Tensor:
        raise TypeError("Inception's logits are in no data set's order (num_classes is None)")


def _port() -> Any:
    """torch_fidelity's module that holds the Inception network."""
    package, module = "torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ValueError("Inception needs torch-fidelity, which is not installed: pip install 'facm[eval]'")
    try:
        with torch_fidelity_importable():
            return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"Inception needs torch-fidelity, which does not import ({error}): pip install 'facm[eval]'"
        ) from error


def _downloaded(port: Any) -> Path:
    """torch-fidelity's weights in PyTorch's hub folder."""
    url: str = port.URL_INCEPTION_V3
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"could not download {url} to {path} ({error}): put the file there, or give its path, Inception(path)"
            ) from error
    return path

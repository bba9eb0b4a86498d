"""The CLIP score (Hessel et al. 2021, arXiv:2104.08718), by torchmetrics: how well images fit their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.hashing import file_sha256
from facm.evaluation.bare_import import torch_fidelity_importable
from facm.evaluation.features import Quantise, as_stored, check_samples
from facm.evaluation.transformers_folder import check_config

_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json")
_WANTED = "expected a local copy of a CLIP model, such as openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class CLIP:
    """A CLIP model in a local folder, in transformers' format, with its weights in model.safetensors.

    path: the folder.
    """

    path: str

    def build(self, device: torch.device | str = "cpu") -> CLIPNetwork:
        """Raises ValueError naming what is missing: torchmetrics, transformers, the folder, its files or weights."""
        folder = Path(self.path).expanduser()
        for name in _FILES:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: there is no such file; {_WANTED}")
        score_type = _torchmetrics()
        model, processor = _opened(folder)
        metric = score_type(model_name_or_path=lambda: (_Tensors(model), processor)).to(device)
        shape = model.config.vision_config
        weights = file_sha256(folder / "model.safetensors")[:16]
        name = f"clip-{shape.hidden_size}x{shape.num_hidden_layers}-{shape.patch_size}-{weights}"
        return CLIPNetwork(metric, name, torch.device(device))


class CLIPNetwork:
    """Scores images against prompts. identity: the network's size and the hash of its weights."""

    def __init__(self, metric: Any, identity: str, device: torch.device) -> None:
        self._metric, self.identity, self.device = metric, identity, device

    def scores(self, x: Tensor, prompts: Sequence[str], quantise: Quantise = "round") -> Tensor:
        """x (B, 1 or 3, H, W) in [-1, 1], stored as 8 bits first, and a prompt for each -> (B,) float64 on the CPU,
        100 times the cosine between their embeddings, which may be negative.

        Each pair passes the network alone, so that its score does not depend on its company.

        Raises ValueError for another number of prompts or of channels, and for samples that are not finite.
        """
        check_samples("generated", x, None)
        if x.shape[1] not in (1, 3):
            raise ValueError(f"CLIP: samples have shape {tuple(x.shape)}, expected images of 1 or 3 channels")
        if len(prompts) != len(x):
            raise ValueError(f"{len(prompts)} prompts for {len(x)} images, expected one for each")
        levels = ((as_stored(x, quantise) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return torch.tensor([self._score(*pair) for pair in zip(levels, prompts, strict=True)], dtype=torch.float64)

    def _score(self, image: Tensor, prompt: str) -> float:
        self._metric.reset()
        with torch.autocast(self.device.type, enabled=False):
            self._metric.update(image.to(self.device), prompt)
        return float(self._metric.score)  # compute() would make 0 of a negative one, before the average is taken


class _Tensors(nn.Module):
    """A CLIP model whose embeddings are tensors, as torchmetrics takes them; transformers 5 returns more."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.config = model.config

    def get_image_features(self, *inputs: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> embeddings (B, D)."""
        return _embeddings(self.model.get_image_features(*inputs))

    def get_text_features(self, *inputs: Tensor) -> Tensor:
        """Tokens (B, L) and their mask (B, L) -> embeddings (B, D)."""
        return _embeddings(self.model.get_text_features(*inputs))


def _embeddings(found: Any) -> Tensor:
    embeddings: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return embeddings


@dataclass(frozen=True)
class _Processor:
    """Images and prompts as the network takes them in. Longer prompts are cut and keep their end token, which is where
    CLIP reads a prompt's embedding."""

    images: Any
    tokenizer: Any
    length: int

    def __call__(self, *, text: Any = None, images: Any = None, **options: Any) -> Any:
        if images is not None:
            return self.images(images=images, return_tensors="pt")
        return self.tokenizer(text, padding=True, truncation=True, max_length=self.length, return_tensors="pt")


def _torchmetrics() -> Any:
    try:
        with torch_fidelity_importable():
            from torchmetrics.multimodal.clip_score import CLIPScore
    except ImportError as error:
        raise ValueError(
            f"the CLIP score needs torchmetrics, which does not import ({error}): pip install 'facm[eval]'"
        ) from error
    return CLIPScore


def _opened(folder: Path) -> tuple[Any, _Processor]:
    """The model and what prepares its inputs, from this machine alone."""
    try:
        import transformers
        from safetensors import SafetensorError
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    except ImportError as error:
        raise ValueError(
            f"the CLIP score needs transformers, which does not import ({error}): pip install 'facm[eval]'"
        ) from error
    check_config(folder, "clip", "CLIP", _WANTED, CLIPConfig, CLIPModel)
    # Pillow resizes, whether or not torchvision is installed: they differ by a level here and there.
    images_type: Any = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    try:
        loaded: Any = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
        images = images_type.from_pretrained(folder, local_files_only=True)
        tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be read ({error}); {_WANTED}") from error
    model, said = loaded
    wrong = [*said["missing_keys"], *(str(key) for key in said["mismatched_keys"])]
    if wrong:  # transformers would go on with random numbers in their place
        raise ValueError(f"{folder} lacks weights of a CLIP model: {', '.join(sorted(wrong)[:5])}")
    words = model.config.text_config
    if len(tokenizer) > words.vocab_size:
        raise ValueError(f"{folder} has a tokenizer of {len(tokenizer)} tokens, the model knows {words.vocab_size}")
    return model, _Processor(images, tokenizer, words.max_position_embeddings)

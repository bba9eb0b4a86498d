"""What a family of diffusers' pipelines has to say, in this package's conventions: t = 0 is noise, v = x_1 - x_0.

A family is one small class in a file of its own and a line in :mod:`facm.foundation.families.table`. It is held to the
pipeline itself by ``tests/foundation/test_conformance.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from facm.core.types import Scale
from facm.flow.guidance import extrapolate
from facm.foundation.families.precision import as_weights


@dataclass(frozen=True)
class TimeEmbedding:
    """The first linear layer of a transformer's time embedding, and what its inputs oscillate with.

    layer: its name in the transformer, such as "time_embedder.linear_1".
    frequencies: (columns,) radians that a unit of t turns each of its input columns by.
    """

    layer: str
    frequencies: Tensor


class Family(ABC):
    """One family. It holds no state: what varies between models is in the transformer, the VAE or the pipeline.

    x is (B, C, H, W), or (B, C, frames, H, W) for video, of latents as the transformer sees them, but never packed into
    tokens: the shape tells the resolution. A family that packs does so in ``velocity``, and maps between both with
    ``packed`` and ``unpacked``.
    """

    pipelines: ClassVar[tuple[str, ...]]
    """Class names in model_index.json, the first of which is written on export."""
    transformer: ClassVar[str]
    """Class name of the transformer in diffusers."""
    text_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    """The pipeline's components that encode prompts."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Those of them that a model may lack."""
    entry: ClassVar[str]
    """Name of the transformer's layer that latents enter by, whose weights' type they are given in."""
    two_experts: ClassVar[bool] = False
    """Whether its models may have two transformers that share the noise levels."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Ends of the names of the linear layers that LoRA adapts unless told otherwise: attention, feed-forward, and the
    time embedding's later layers, without which the anchor is learned worse."""
    fps: ClassVar[float] = 16
    """Frames a second of a video, where the family makes them."""

    @abstractmethod
    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        """v (B, ...) like x at x (B, ...), t (B,) in [0, 2], where t > 1 is FACM's anchor: times are passed on as they
        are, in float32, without a clamp.

        cond: as ``encode`` made it. guidance: embedded guidance, for transformers that are told it.
        """

    def as_weights(self, transformer: nn.Module, value: Tensor) -> Tensor:
        """``value`` in the type of the transformer's weights, unless autocast finds the type of each product itself."""
        return as_weights(transformer, self.entry, value)

    def guide(self, v_c: Tensor, v_u: Tensor, scale: Scale) -> Tensor:
        """The guided velocity as the pipeline computes it; plain classifier-free guidance unless overridden."""
        return extrapolate(v_c, v_u, scale)

    def scale(self, guidance_scale: float) -> float:
        """w of :func:`facm.flow.guidance.extrapolate` for the pipeline's argument; 1 is no guidance."""
        return guidance_scale

    @abstractmethod
    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        """Named tensors (B, ...) that ``velocity`` takes as its condition, as the pipeline's ``__call__`` makes them by
        default: the same maximal length, template and padding.

        Among them ``mask`` (B, L) bool, true for tokens, where prompts vary in length and padding takes no part; tokens
        are then padded at the end, with zeros. negative: whether these are negative prompts, where that differs.
        """

    @abstractmethod
    def most_tokens(self, pipe: Any) -> int:
        """The number of tokens of a prompt, special ones included, that ``encode`` takes before it cuts."""

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        """The number of tokens, special ones included, that ``prompt`` has."""
        return len(pipe.tokenizer(prompt).input_ids)

    @abstractmethod
    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Shape of one x for pictures of this size in pixels."""

    @abstractmethod
    def multiple(self, pipe: Any) -> int:
        """Height and width of pictures are multiples of this number of pixels."""

    def frame_multiple(self, pipe: Any) -> int:
        """Clips have 1 + a multiple of this number of frames; 0 where the family makes pictures alone."""
        return 0

    @abstractmethod
    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        """x_1 of images (B, 3, H, W) in [-1, 1]: the mode of the VAE's posterior, scaled for the transformer; in a
        family of videos of clips (B, 3, frames, H, W), too."""

    @abstractmethod
    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of x_1; of video the first frame."""

    def to_clips(self, vae: Any, x_1: Tensor) -> Tensor:
        """All frames (B, 3, frames, H, W) in [-1, 1] of x_1; a picture is a clip of one."""
        return self.to_images(vae, x_1).unsqueeze(2)

    def packed(self, x: Tensor) -> Tensor:
        """x as the pipeline's ``latents`` argument takes it."""
        return x

    def unpacked(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of ``packed`` for samples of ``shape``."""
        return latents.reshape(len(latents), *shape)

    def from_pipeline(self, pipe: Any, latents: Tensor, shape: Sequence[int]) -> Tensor:
        """x_1 of ``shape`` out of what the pipeline gives with ``output_type="latent"``."""
        return self.unpacked(latents, shape)

    @abstractmethod
    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        """Where times enter the transformer."""

    @abstractmethod
    def unguided(self) -> dict[str, Any]:
        """Arguments of the pipeline's call with which it guides no further."""

    def call_arguments(self, frames: int = 1) -> dict[str, Any]:
        """Further arguments of the pipeline's call with which it makes ``frames`` frames of just the size asked for."""
        return {}

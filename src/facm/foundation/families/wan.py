"""Wan 2.1 of Alibaba, text to video; one frame is a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines

TOKENS = 512
"""Tokens that the pipeline's call pads and cuts prompts to; the padding, zeros, takes part in attention."""


class Wan(Family):
    """Time 1000 (1 - t), output noise - data, two calls for guidance."""

    pipelines = ("WanPipeline",)
    transformer = "WanTransformer3DModel"
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
        *("time_embedder.linear_2", "time_proj"),
    )

    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        noise_minus_data = transformer(
            hidden_states=x,
            timestep=1000 * (1 - t),
            encoder_hidden_states=cond["embeddings"].to(x.dtype),
            return_dict=False,
        )[0]
        return -noise_minus_data

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        device = pipe.text_encoder.device
        embeddings, _ = pipe.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=TOKENS, device=device
        )
        return {"embeddings": embeddings}

    def most_tokens(self, pipe: Any) -> int:
        return TOKENS

    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        spatial, temporal = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
        channels = pipe.vae.config.z_dim
        return channels, (frames - 1) // temporal + 1, height // spatial, width // spatial

    def multiple(self, pipe: Any) -> int:
        return int(pipe.vae_scale_factor_spatial * 2)  # patches of 2 x 2, in all released models

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        mean, std = _moments(vae, images)
        return (vae.encode(images.unsqueeze(2)).latent_dist.mode() - mean) / std

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        mean, std = _moments(vae, x_1)
        return vae.decode(x_1 * std + mean, return_dict=False)[0][:, :, 0]

    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        layer = "condition_embedder.time_embedder.linear_1"
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), 1000.0))

    def unguided(self) -> dict[str, Any]:
        return {"guidance_scale": 1.0}


def _moments(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of the latents, (1, C, 1, 1, 1)."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return mean.to(like.device, like.dtype), std.to(like.device, like.dtype)

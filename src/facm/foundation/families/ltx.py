"""LTX-Video of Lightricks; one frame is a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facm.foundation.families.autoencoders import as_clips
from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.prompts import default_of, without_padding
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines

POSITIONS = (8 / 25, 32, 32)
"""Seconds and pixels between neighbouring latents: 8 frames at the pipeline's 25 a second, 32 pixels."""


class LTX(Family):
    """Time 1000 (1 - t), output noise - data, a latent in each token."""

    pipelines = ("LTXPipeline",)
    transformer = "LTXVideoTransformer3DModel"
    entry = "proj_in"
    fps = 25
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
        *("timestep_embedder.linear_2", "time_embed.linear"),
    )

    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        _, _, frames, height, width = x.shape
        noise_minus_data = transformer(
            hidden_states=self.packed(self.as_weights(transformer, x)),
            encoder_hidden_states=self.as_weights(transformer, cond["embeddings"]),
            timestep=1000 * (1 - t),
            encoder_attention_mask=cond["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=POSITIONS,
            return_dict=False,
        )[0]
        return -self.unpacked(noise_minus_data, x.shape[1:])

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        embeddings, mask, _, _ = pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=default_of(pipe, "max_sequence_length"),
            device=pipe.text_encoder.device,
        )
        return without_padding(embeddings, mask)

    def most_tokens(self, pipe: Any) -> int:
        return int(default_of(pipe, "max_sequence_length"))

    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        spatial, temporal = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
        channels = pipe.transformer.config.in_channels
        return channels, (frames - 1) // temporal + 1, height // spatial, width // spatial

    def multiple(self, pipe: Any) -> int:
        return int(pipe.vae_spatial_compression_ratio)

    def frame_multiple(self, pipe: Any) -> int:
        return int(pipe.vae_temporal_compression_ratio)

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        mode = vae.encode(as_clips(images).to(vae.dtype)).latent_dist.mode().to(images.dtype)
        mean, std = _moments(vae, images)
        return (mode - mean) * vae.config.scaling_factor / std

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        return self.to_clips(vae, x_1)[:, :, 0]

    def to_clips(self, vae: Any, x_1: Tensor) -> Tensor:
        mean, std = _moments(vae, x_1)
        latents = (x_1 * std / vae.config.scaling_factor + mean).to(vae.dtype)
        time = torch.zeros(len(x_1)).to(latents) if vae.config.timestep_conditioning else None
        decoded: Tensor = vae.decode(latents, time, return_dict=False)[0]
        return decoded.to(x_1.dtype)

    def packed(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2).contiguous()

    def unpacked(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        return latents.transpose(1, 2).reshape(len(latents), *shape)

    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        layer = "time_embed.emb.timestep_embedder.linear_1"
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), 1000.0))

    def unguided(self) -> dict[str, Any]:
        return {"guidance_scale": 1.0}

    def call_arguments(self, frames: int = 1) -> dict[str, Any]:
        return {"num_frames": frames, "frame_rate": self.fps}


def _moments(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of the latents, (1, C, 1, 1, 1)."""
    return vae.latents_mean.view(1, -1, 1, 1, 1).to(like), vae.latents_std.view(1, -1, 1, 1, 1).to(like)

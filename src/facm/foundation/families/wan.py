"""Wan 2.1 and 2.2 of Alibaba, text to video; one frame is a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from facm.foundation.families.autoencoders import clips_of_standardised, images_of_standardised, standardised_latents
from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines

TOKENS = 512
"""Tokens that the pipeline's call pads and cuts prompts to; the padding, zeros, takes part in attention."""


class Wan(Family):
    """Time 1000 (1 - t), output noise - data, two calls for guidance."""

    pipelines = ("WanPipeline",)
    transformer = "WanTransformer3DModel"
    two_experts = True
    entry = "patch_embedding"
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
        *("time_embedder.linear_2", "time_proj"),
    )

    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        noise_minus_data = transformer(
            hidden_states=self.as_weights(transformer, x),
            timestep=1000 * (1 - t),
            encoder_hidden_states=self.as_weights(transformer, cond["embeddings"]),
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

    def frame_multiple(self, pipe: Any) -> int:
        return int(pipe.vae_scale_factor_temporal)

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        return standardised_latents(vae, images)

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        return images_of_standardised(vae, x_1)

    def to_clips(self, vae: Any, x_1: Tensor) -> Tensor:
        return clips_of_standardised(vae, x_1)

    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        layer = "condition_embedder.time_embedder.linear_1"
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), 1000.0))

    def unguided(self) -> dict[str, Any]:
        return {"guidance_scale": 1.0}

    def call_arguments(self, frames: int = 1) -> dict[str, Any]:
        return {"num_frames": frames}

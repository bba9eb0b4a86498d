"""FLUX.1 of Black Forest Labs: dev, which is told its guidance, schnell, and models with true guidance made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facm.foundation.families.autoencoders import images_of_scaled, scaled_latents
from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.embedded_guidance import embedded_guidance
from facm.foundation.families.packing import grid, packed_squares, unpacked_squares
from facm.foundation.families.precision import exact_time
from facm.foundation.families.prompts import default_of
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines


class Flux(Family):
    """Time 1 - t, output noise - data, in tokens with positions; CLIP's pooled vector, and T5 padded to 512 tokens."""

    pipelines = ("FluxPipeline",)
    transformer = "FluxTransformer2DModel"
    text_parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    entry = "x_embedder"
    lora_targets = (
        *("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
        *("timestep_embedder.linear_2", "norm1.linear", "norm1_context.linear", "norm.linear"),
    )

    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        _, _, height, width = x.shape
        embeddings = self.as_weights(transformer, cond["embeddings"])
        rows_and_columns = grid(1, height // 2, width // 2, device=x.device)
        with exact_time(transformer.time_text_embed, 1000 * (1 - t)):
            noise_minus_data = transformer(
                hidden_states=self.packed(self.as_weights(transformer, x)),
                timestep=1 - t,
                guidance=embedded_guidance(transformer, guidance, t),
                pooled_projections=self.as_weights(transformer, cond["pooled"]),
                encoder_hidden_states=embeddings,
                txt_ids=torch.zeros(embeddings.shape[1], 3, device=x.device),
                img_ids=rows_and_columns.float(),
                return_dict=False,
            )[0]
        return -unpacked_squares(noise_minus_data, x.shape[1:])

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        embeddings, pooled, _ = pipe.encode_prompt(
            list(prompts),
            device=pipe.text_encoder.device,
            max_sequence_length=default_of(pipe, "max_sequence_length"),
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def most_tokens(self, pipe: Any) -> int:
        return int(default_of(pipe, "max_sequence_length"))

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        return len(pipe.tokenizer_2(prompt).input_ids)

    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = pipe.vae_scale_factor
        return pipe.transformer.config.in_channels // 4, height // factor, width // factor

    def multiple(self, pipe: Any) -> int:
        return int(pipe.vae_scale_factor * 2)

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        return scaled_latents(vae, images)

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        return images_of_scaled(vae, x_1)

    def packed(self, x: Tensor) -> Tensor:
        return packed_squares(x)

    def unpacked(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        return unpacked_squares(latents, shape)

    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        layer = "time_text_embed.timestep_embedder.linear_1"
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), 1000.0))

    def unguided(self) -> dict[str, Any]:
        return {"true_cfg_scale": 1.0}

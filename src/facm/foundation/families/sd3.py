"""Stable Diffusion 3 and 3.5 of Stability AI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from facm.foundation.families.autoencoders import images_of_scaled, scaled_latents
from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.prompts import default_of
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines


class StableDiffusion3(Family):
    """Time 1000 (1 - t), output noise - data; two CLIPs and, where the model has it, T5, padded to a fixed length."""

    pipelines = ("StableDiffusion3Pipeline",)
    transformer = "SD3Transformer2DModel"
    text_parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    optional_parts = ("tokenizer_3", "text_encoder_3")
    entry = "pos_embed.proj"
    lora_targets = (
        *("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
        *("timestep_embedder.linear_2", "norm1.linear", "norm1_context.linear"),
    )

    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        noise_minus_data = transformer(
            hidden_states=self.as_weights(transformer, x),
            timestep=1000 * (1 - t),
            encoder_hidden_states=self.as_weights(transformer, cond["embeddings"]),
            pooled_projections=self.as_weights(transformer, cond["pooled"]),
            return_dict=False,
        )[0]
        return -noise_minus_data

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        embeddings, _, pooled, _ = pipe.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=default_of(pipe, "max_sequence_length"),
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def most_tokens(self, pipe: Any) -> int:
        longest = pipe.tokenizer_max_length if pipe.text_encoder_3 is None else default_of(pipe, "max_sequence_length")
        return int(longest)

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        tokenizer = pipe.tokenizer if pipe.text_encoder_3 is None else pipe.tokenizer_3
        return len(tokenizer(prompt).input_ids)

    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = pipe.vae_scale_factor
        return pipe.transformer.config.in_channels, height // factor, width // factor

    def multiple(self, pipe: Any) -> int:
        return int(pipe.vae_scale_factor * pipe.transformer.config.patch_size)

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        return scaled_latents(vae, images)

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        return images_of_scaled(vae, x_1)

    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        layer = "time_text_embed.timestep_embedder.linear_1"
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), 1000.0))

    def unguided(self) -> dict[str, Any]:
        return {"guidance_scale": 1.0}

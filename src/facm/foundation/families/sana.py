"""Sana of NVIDIA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.prompts import default_of, without_padding
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines


class Sana(Family):
    """Time 1000 (1 - t) times the transformer's own factor, output noise - data; prompts, but not negative ones, follow
    an instruction to the language model that encodes them."""

    pipelines = ("SanaPipeline",)
    transformer = "SanaTransformer2DModel"
    entry = "patch_embed.proj"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "timestep_embedder.linear_2", "time_embed.linear")

    def velocity(
        self, transformer: Any, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        noise_minus_data = transformer(
            self.as_weights(transformer, x),
            encoder_hidden_states=self.as_weights(transformer, cond["embeddings"]),
            encoder_attention_mask=cond["mask"],
            timestep=1000 * (1 - t) * transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return -noise_minus_data[:, : x.shape[1]]  # some predict a variance, too

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        embeddings, mask, _, _ = pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=pipe.text_encoder.device,
            max_sequence_length=default_of(pipe, "max_sequence_length"),
            complex_human_instruction=None if negative else default_of(pipe, "complex_human_instruction"),
        )
        return without_padding(embeddings, mask)

    def most_tokens(self, pipe: Any) -> int:
        return int(default_of(pipe, "max_sequence_length"))

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        instruction = "\n".join(default_of(pipe, "complex_human_instruction"))
        return len(pipe.tokenizer(instruction + prompt).input_ids) - len(pipe.tokenizer(instruction).input_ids) + 2

    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = pipe.vae_scale_factor
        return pipe.transformer.config.in_channels, height // factor, width // factor

    def multiple(self, pipe: Any) -> int:
        return max(
            32, int(pipe.vae_scale_factor * pipe.transformer.config.patch_size)
        )  # 32 is the pipeline's own check

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        return vae.encode(images.to(vae.dtype)).latent.to(images.dtype) * vae.config.scaling_factor

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        latents = x_1 / vae.config.scaling_factor
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0].to(x_1.dtype)

    def time_embedding(self, transformer: Any) -> TimeEmbedding:
        layer = "time_embed.emb.timestep_embedder.linear_1"
        factor = 1000.0 * transformer.config.timestep_scale
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), factor))

    def unguided(self) -> dict[str, Any]:
        return {"guidance_scale": 1.0}

    def call_arguments(self, frames: int = 1) -> dict[str, Any]:
        return {"use_resolution_binning": False}

"""Qwen-Image of Alibaba."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.types import Scale
from facm.foundation.families.autoencoders import images_of_standardised, standardised_latents
from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.packing import packed_squares, unpacked_squares
from facm.foundation.families.precision import exact_time
from facm.foundation.families.prompts import without_padding
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines

TOKENS = 512
"""Tokens that the pipeline's call cuts prompts to; its ``encode_prompt`` takes 1024 by default."""


class QwenImage(Family):
    """Time 1 - t, output noise - data, in tokens; a guided token is rescaled to the norm of the conditional one."""

    pipelines = ("QwenImagePipeline",)
    transformer = "QwenImageTransformer2DModel"
    entry = "img_in"
    lora_targets = (
        *("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
        *("timestep_embedder.linear_2", "img_mod.1", "txt_mod.1"),
    )

    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        _, _, height, width = x.shape
        with exact_time(transformer.time_text_embed, 1 - t):
            noise_minus_data = transformer(
                hidden_states=self.packed(self.as_weights(transformer, x)),
                timestep=1 - t,
                encoder_hidden_states=self.as_weights(transformer, cond["embeddings"]),
                encoder_hidden_states_mask=cond["mask"],
                img_shapes=[[(1, height // 2, width // 2)]] * len(x),
                return_dict=False,
            )[0]
        return -unpacked_squares(noise_minus_data, x.shape[1:])

    def guide(self, v_c: Tensor, v_u: Tensor, scale: Scale) -> Tensor:
        tokens, guided = packed_squares(v_c), packed_squares(super().guide(v_c, v_u, scale))
        norms = [torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (tokens, guided)]
        return unpacked_squares(guided * (norms[0] / norms[1]), v_c.shape[1:])

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        embeddings, mask = pipe.encode_prompt(
            list(prompts), device=pipe.text_encoder.device, max_sequence_length=TOKENS
        )
        if mask is None:
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return without_padding(embeddings, mask)

    def most_tokens(self, pipe: Any) -> int:
        return TOKENS

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        tokens = pipe.tokenizer(pipe.prompt_template_encode.format(prompt)).input_ids
        return len(tokens) - pipe.prompt_template_encode_start_idx

    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = pipe.vae_scale_factor
        return pipe.vae.config.z_dim, height // factor, width // factor

    def multiple(self, pipe: Any) -> int:
        return int(pipe.vae_scale_factor * 2)

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        return standardised_latents(vae, images).squeeze(2)

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        return images_of_standardised(vae, x_1.unsqueeze(2))

    def packed(self, x: Tensor) -> Tensor:
        return packed_squares(x)

    def unpacked(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        return unpacked_squares(latents, shape)

    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        layer = "time_text_embed.timestep_embedder.linear_1"
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), 1000.0))

    def unguided(self) -> dict[str, Any]:
        return {"true_cfg_scale": 1.0}

"""Z-Image of Alibaba's Tongyi laboratory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facm.foundation.families.autoencoders import images_of_scaled, scaled_latents
from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.prompts import lengths, padded
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines

TOKENS = 512


class ZImage(Family):
    """Time t, output data - noise, pictures and prompts in lists; the pipeline's guidance g is v_c + g (v_c - v_u)."""

    pipelines = ("ZImagePipeline",)
    transformer = "ZImageTransformer2DModel"
    entry = "all_x_embedder.2-1"
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        *("t_embedder.mlp.2", "adaLN_modulation.0", "adaLN_modulation.1"),
    )

    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        embeddings = self.as_weights(transformer, cond["embeddings"])
        pictures = transformer(
            list(self.as_weights(transformer, x).unsqueeze(2).unbind()),
            t,
            [prompt[:length] for prompt, length in zip(embeddings, lengths(cond["mask"]), strict=True)],
            return_dict=False,
        )[0]
        return torch.stack(pictures).squeeze(2)

    def scale(self, guidance_scale: float) -> float:
        return 1.0 + guidance_scale

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        embeddings, _ = pipe.encode_prompt(
            list(prompts),
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=TOKENS,
        )
        return padded(embeddings)

    def most_tokens(self, pipe: Any) -> int:
        return TOKENS

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        text = pipe.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return len(pipe.tokenizer(text).input_ids)

    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = pipe.vae_scale_factor
        return pipe.transformer.in_channels, height // factor, width // factor

    def multiple(self, pipe: Any) -> int:
        return int(pipe.vae_scale_factor * 2)

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        return scaled_latents(vae, images)

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        return images_of_scaled(vae, x_1)

    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        layer = "t_embedder.mlp.0"
        factor = transformer.config.t_scale  # type: ignore[union-attr]
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), factor))  # type: ignore[arg-type]

    def unguided(self) -> dict[str, Any]:
        return {"guidance_scale": 0.0}

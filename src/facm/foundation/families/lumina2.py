"""Lumina-Image 2.0 of the Shanghai AI Laboratory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.types import Scale
from facm.foundation.families.autoencoders import images_of_scaled, scaled_latents
from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.prompts import default_of, without_padding
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines


class Lumina2(Family):
    """Time t, without the usual factor of 1000, output data - noise; what is guided is rescaled to the norm of the
    conditional velocity, row by row of a channel, as the pipeline does it. A system prompt precedes prompts, but not
    negative ones."""

    pipelines = ("Lumina2Pipeline",)
    transformer = "Lumina2Transformer2DModel"
    entry = "x_embedder"
    lora_targets = (
        *(
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "feed_forward.linear_1",
            "feed_forward.linear_2",
            "feed_forward.linear_3",
        ),
        *("timestep_embedder.linear_2", "norm1.linear"),
    )

    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        mask = cond["mask"]
        with _full_prompts(transformer) if mask.is_meta else contextlib.nullcontext():
            velocity: Tensor = transformer(
                hidden_states=self.as_weights(transformer, x),
                timestep=t,
                encoder_hidden_states=self.as_weights(transformer, cond["embeddings"]),
                encoder_attention_mask=mask,
                return_dict=False,
            )[0]
        return velocity

    def guide(self, v_c: Tensor, v_u: Tensor, scale: Scale) -> Tensor:
        guided = super().guide(v_c, v_u, scale)
        norms = [torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (v_c, guided)]
        return guided * (norms[0] / norms[1])

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        longest, device = default_of(pipe, "max_sequence_length"), pipe.text_encoder.device
        if negative:  # encoded only beside prompts
            _, _, embeddings, mask = pipe.encode_prompt(
                [""] * len(prompts), True, list(prompts), device=device, max_sequence_length=longest
            )
        else:
            embeddings, mask, _, _ = pipe.encode_prompt(
                list(prompts), False, device=device, max_sequence_length=longest
            )
        return without_padding(embeddings, mask)

    def most_tokens(self, pipe: Any) -> int:
        return int(default_of(pipe, "max_sequence_length"))

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        return len(pipe.tokenizer(f"{pipe.system_prompt} <Prompt Start> {prompt}").input_ids)

    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = pipe.vae_scale_factor
        return pipe.transformer.config.in_channels, height // factor, width // factor

    def multiple(self, pipe: Any) -> int:
        return int(pipe.vae_scale_factor * 2)

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        return scaled_latents(vae, images)

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        return images_of_scaled(vae, x_1)

    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        layer = "time_caption_embed.timestep_embedder.linear_1"
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), 1.0))

    def unguided(self) -> dict[str, Any]:
        return {"guidance_scale": 1.0}


@contextlib.contextmanager
def _full_prompts(transformer: nn.Module) -> Iterator[None]:
    """The transformer reads the prompts' lengths off the mask; on the meta device there are none, and all are full."""

    def replace(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs[0], torch.ones(inputs[1].shape, dtype=torch.bool, device="cpu")

    handle = transformer.get_submodule("rope_embedder").register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()

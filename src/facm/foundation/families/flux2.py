"""FLUX.2 of Black Forest Labs: dev, which is told its guidance, and Klein, which has true guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facm.foundation.families.base import Family, TimeEmbedding
from facm.foundation.families.embedded_guidance import embedded_guidance
from facm.foundation.families.packing import grid
from facm.foundation.families.precision import exact_time
from facm.foundation.families.prompts import default_of
from facm.foundation.families.sinusoids import columns_of, cosines_then_sines


class Flux2(Family):
    """Time 1 - t, output noise - data, in tokens with positions; x are squares of 2 x 2 latents, standardised."""

    pipelines = ("Flux2Pipeline",)
    transformer = "Flux2Transformer2DModel"
    entry = "x_embedder"
    lora_targets = (
        *("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"),
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
        *("attn.to_qkv_mlp_proj", "attn.to_out", "timestep_embedder.linear_2"),
        *("double_stream_modulation_img.linear", "double_stream_modulation_txt.linear"),
        "single_stream_modulation.linear",
    )

    def velocity(
        self, transformer: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], guidance: float | None = None
    ) -> Tensor:
        _, _, height, width = x.shape
        embeddings = self.as_weights(transformer, cond["embeddings"])
        with exact_time(transformer.time_guidance_embed, 1000 * (1 - t)):
            noise_minus_data = transformer(
                hidden_states=_tokens(self.as_weights(transformer, x)),
                timestep=1 - t,
                guidance=embedded_guidance(transformer, guidance, t),
                encoder_hidden_states=embeddings,
                txt_ids=grid(1, 1, 1, embeddings.shape[1], device=x.device),
                img_ids=grid(1, height, width, 1, device=x.device),
                return_dict=False,
            )[0]
        return -noise_minus_data.transpose(1, 2).reshape(x.shape)

    def encode(self, pipe: Any, prompts: Sequence[str], negative: bool = False) -> dict[str, Tensor]:
        embeddings, _ = pipe.encode_prompt(
            list(prompts),
            device=pipe.text_encoder.device,
            max_sequence_length=default_of(pipe, "max_sequence_length"),
            text_encoder_out_layers=default_of(pipe, "text_encoder_out_layers"),
        )
        return {"embeddings": embeddings}

    def most_tokens(self, pipe: Any) -> int:
        return int(default_of(pipe, "max_sequence_length"))

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        messages = format_input([prompt], system_message=pipe.system_message)
        tokens = pipe.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
        return len(tokens["input_ids"][0])

    def shape(self, pipe: Any, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = pipe.vae_scale_factor * 2
        return pipe.transformer.config.in_channels, height // factor, width // factor

    def multiple(self, pipe: Any) -> int:
        return int(pipe.vae_scale_factor * 2)

    def to_latents(self, vae: Any, images: Tensor) -> Tensor:
        latents = vae.encode(images.to(vae.dtype)).latent_dist.mode().to(images.dtype)
        mean, std = _moments(vae, images)
        return (torch.nn.functional.pixel_unshuffle(latents, 2) - mean) / std

    def to_images(self, vae: Any, x_1: Tensor) -> Tensor:
        mean, std = _moments(vae, x_1)
        latents = torch.nn.functional.pixel_shuffle(x_1 * std + mean, 2)
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0].to(x_1.dtype)

    def from_pipeline(self, pipe: Any, latents: Tensor, shape: Sequence[int]) -> Tensor:
        return latents.transpose(1, 2).reshape(len(latents), *shape)  # it takes squares, and gives tokens

    def time_embedding(self, transformer: nn.Module) -> TimeEmbedding:
        layer = "time_guidance_embed.timestep_embedder.linear_1"
        return TimeEmbedding(layer, cosines_then_sines(columns_of(transformer, layer), 1000.0))

    def unguided(self) -> dict[str, Any]:
        return {}


class Flux2Klein(Flux2):
    """FLUX.2 Klein: true guidance by the empty prompt, encoded by Qwen3."""

    pipelines = ("Flux2KleinPipeline",)

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        text = pipe.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return len(pipe.tokenizer(text).input_ids)

    def from_pipeline(self, pipe: Any, latents: Tensor, shape: Sequence[int]) -> Tensor:
        mean, std = _moments(pipe.vae, latents)  # it gives what the VAE decodes
        return (torch.nn.functional.pixel_unshuffle(latents, 2) - mean) / std

    def unguided(self) -> dict[str, Any]:
        return {"guidance_scale": 1.0}


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return x.flatten(2).transpose(1, 2).contiguous()


def _moments(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of the squares, (1, C, 1, 1)."""
    mean, std = vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return mean.view(1, -1, 1, 1).to(like), std.view(1, -1, 1, 1).to(like)

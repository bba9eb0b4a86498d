"""Tiny random pipelines of every family, made in a second or less without a download, saved as diffusers saves them.

Heads and modulations that diffusers initialises with zeros are drawn at random: a network whose output is zero, or does
not depend on the prompt, agrees with everything.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

WIDTH = 16
"""Width of every text encoder."""
ONE_TURN = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def saved(kind: str, path: Path) -> Path:
    """The folder of the tiny pipeline ``kind``, a key of :data:`MAKERS`, made where it is not there yet."""
    if not (path / "model_index.json").exists():
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            made(kind).save_pretrained(path)
    return path


def made(kind: str) -> Any:
    """The tiny pipeline ``kind``; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = MAKERS[kind]()
        _awaken(pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _awaken(transformer: nn.Module) -> None:
    """Every matrix is drawn anew so that its outputs are about as large as its inputs; what is zero becomes small."""
    for parameter in transformer.parameters():
        if parameter.ndim > 1 and parameter.shape[0] > 1:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=fan_in**-0.5)
        elif float(parameter.detach().abs().max()) == 0:
            nn.init.normal_(parameter, std=0.1)


def _tokenizer(length: int = 1_000_000) -> Any:
    """Bytes as tokens, and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    symbols = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_alone = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, pad_token="<pad>", eos_token="</s>", model_max_length=length
    )
    tokenizer.chat_template = ONE_TURN
    return tokenizer


VOCABULARY = 258
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
SHORT_CLIP = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "projection_dim": WIDTH,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def _t5(width: int = WIDTH) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=VOCABULARY, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def _umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return UMT5EncoderModel(config).eval()


def _clip(projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(**SHORT_CLIP)).eval()


def _qwen3(layers: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**DECODER, num_hidden_layers=layers)).eval()


def _gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(**DECODER, num_hidden_layers=2, sliding_window=64, query_pre_attn_scalar=8)
    return Gemma2Model(config).eval()


def _qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        **{name: value for name, value in DECODER.items() if name != "head_dim"},
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def _mistral3() -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    text = MistralConfig(**DECODER, num_hidden_layers=30)
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    config = Mistral3Config(text_config=text, vision_config=vision)
    return Mistral3ForConditionalGeneration(config).eval()


def _kl(levels: int = 2, channels: int = 4) -> Any:
    """The usual autoencoder, of 2 ** (levels - 1) pixels along each side of a latent."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4,) * levels,
        latent_channels=channels,
        norm_num_groups=2,
        scaling_factor=0.4,
        shift_factor=0.2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _euler(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


MEANS_AND_SCALES = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
VIDEO_AUTOENCODER = {
    **MEANS_AND_SCALES,
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}


def _wan() -> Any:
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return WanPipeline(_tokenizer(), _umt5(), AutoencoderKLWan(**VIDEO_AUTOENCODER), _euler(shift=3.0), transformer)


def _z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 4],
        axes_lens=[512, 32, 32],
    )
    return ZImagePipeline(_euler(shift=3.0), _kl(), _qwen3(2), _tokenizer(), transformer)


def _qwen_image() -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(**VIDEO_AUTOENCODER)
    return QwenImagePipeline(_euler(use_dynamic_shifting=True), vae, _qwen2_5_vl(), _tokenizer(), transformer)


def _sd3() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    encoders = (_clip(True), _tokenizer(77), _clip(True), _tokenizer(77), _t5(2 * WIDTH), _tokenizer())
    return StableDiffusion3Pipeline(transformer, _euler(shift=3.0), _kl(), *encoders)


def _flux(told: bool) -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=told,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = _euler(use_dynamic_shifting=told)
    return FluxPipeline(scheduler, _kl(), _clip(False), _tokenizer(77), _t5(), _tokenizer(), transformer)


def _flux2_parts(encoder_layers: int, told: bool) -> tuple[Any, Any]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=encoder_layers * WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=told,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    statistics = vae.bn
    assert statistics.running_mean is not None
    assert statistics.running_var is not None
    statistics.running_mean.normal_(std=0.3)
    statistics.running_var.uniform_(0.5, 2.0)
    return vae.eval(), transformer


def _flux2() -> Any:
    from diffusers import Flux2Pipeline

    vae, transformer = _flux2_parts(3, True)
    return Flux2Pipeline(_euler(use_dynamic_shifting=True), vae, _mistral3(), _tokenizer(), transformer)


def _flux2_klein() -> Any:
    from diffusers import Flux2KleinPipeline

    vae, transformer = _flux2_parts(3, False)
    return Flux2KleinPipeline(_euler(use_dynamic_shifting=True), vae, _qwen3(28), _tokenizer(), transformer)


def _sana() -> Any:
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=16,
        timestep_scale=0.5,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    )
    return SanaPipeline(_tokenizer(), _gemma2(), vae, transformer, _euler(shift=3.0))


def _lumina2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 32, 32),
        cap_feat_dim=WIDTH,
    )
    return Lumina2Pipeline(transformer, _euler(shift=3.0), _kl(4), _gemma2(), _tokenizer())


def _ltx() -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        scaling_factor=0.8,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.latents_mean.normal_(std=0.3)
    vae.latents_std.uniform_(0.5, 2.0)
    return LTXPipeline(_euler(use_dynamic_shifting=True), vae.eval(), _t5(), _tokenizer(), transformer)


MAKERS: dict[str, Callable[[], Any]] = {
    "wan": _wan,
    "z_image": _z_image,
    "qwen_image": _qwen_image,
    "sd3": _sd3,
    "flux-dev": lambda: _flux(True),
    "flux-schnell": lambda: _flux(False),
    "flux2": _flux2,
    "flux2-klein": _flux2_klein,
    "sana": _sana,
    "lumina2": _lumina2,
    "ltx": _ltx,
}

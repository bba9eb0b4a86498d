"""A Qwen-Image pipeline of diffusers' own classes that is small enough for two CPU cores: digits of 8 x 8 pixels.

Its autoencoder is the identity of gray pixels to 5e-5, its text encoder has random weights, which tell words apart, and
its tokenizer knows the captions' words. So all that is learned is in the transformer.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from facm.studies.text_demo.captions import all_captions

SIDE = 8
"""Height and width of a picture in pixels."""
TEXT_WIDTH = 32
HEADS, LAYERS, AXES = 4, 2, (4, 10, 10)
"""Of the transformer; AXES are the parts of a head for frame, row and column."""
SMALL = 0.01
"""Scale at which a normalisation and an activation are the identity, to half of its square."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end|>\n<|im_start|>assistant\n")
"""What is one token besides words; with all that follows a prompt in one, there are few tokens to compute."""
# What the pipeline wraps a prompt in; it drops the first 34 tokens, which are those before the prompt.
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
DROPPED = 34


def new_pipeline(mean: float, std: float, seed: int = 0) -> Any:
    """A ``QwenImagePipeline`` with an untrained transformer.

    mean, std: of the gray values in [-1, 1] that it is to learn; its latents have mean 0 and deviation 1.
    seed: of all weights. Raises ValueError without diffusers.
    """
    diffusers = _library("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        tokenizer = _tokenizer()
        return diffusers.QwenImagePipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=_autoencoder(mean, std),
            text_encoder=_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
            transformer=_transformer(),
        )


def _library(name: str) -> Any:
    """diffusers, or transformers. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"the text demo needs {name}, which is not installed: pip install 'facm[hf]'") from error


def _tokenizer() -> Any:
    """Byte-level, with every word of the template and the captions as one token."""
    from tokenizers import models, trainers

    Qwen2Tokenizer = _library("transformers").Qwen2Tokenizer
    text = [TEMPLATE.format(""), *all_captions(), *(f" {caption}" for caption in all_captions())]
    learner = Qwen2Tokenizer().backend_tokenizer
    learner.model = models.BPE()
    learner.train_from_iterator(
        [part for line in text for part in _without(line, SPECIAL)],
        trainers.BpeTrainer(vocab_size=4096, min_frequency=1, initial_alphabet=_bytes(), show_progress=False),
    )
    state = _model_of(learner)
    vocab = {token: i for i, token in enumerate(SPECIAL)}
    vocab |= {token: i + len(SPECIAL) for token, i in state["vocab"].items()}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[tuple(pair) for pair in state["merges"]], extra_special_tokens=list(SPECIAL[1:])
    )
    found = len(tokenizer(TEMPLATE[: TEMPLATE.index("{")]).input_ids)
    assert found == DROPPED, found
    return tokenizer


def _bytes() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _model_of(tokenizer: Any) -> dict[str, Any]:
    import json

    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def _without(line: str, special: tuple[str, ...]) -> list[str]:
    for token in sorted(special, key=len, reverse=True):
        line = line.replace(token, "\0")
    return [part for part in line.split("\0") if part]


def _text_encoder(tokens: int) -> nn.Module:
    transformers = _library("transformers")
    text = {
        **{"vocab_size": tokens, "hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
        **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.5},
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0},
    }
    # Prompts have no pictures: the tower for them is as small as it goes.
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": TEXT_WIDTH}
    ids = {"image_token_id": 0, "video_token_id": 0, "vision_start_token_id": 0, "vision_end_token_id": 0}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    encoder: nn.Module = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return encoder.eval()


def _transformer() -> nn.Module:
    transformer: nn.Module = _library("diffusers").QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=1,
        num_layers=LAYERS,
        attention_head_dim=sum(AXES),
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=AXES,
    )
    return transformer


@torch.no_grad()
def _autoencoder(mean: float, std: float) -> Any:
    """Latents (1, H, W) that are the mean of the three colours: x passes every layer as a pair (x, -x) of small numbers
    beside a constant, whose difference after the activation is x again."""
    vae = _library("diffusers").AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=1,
        dim_mult=[1],
        num_res_blocks=1,
        temperal_downsample=[],
        latents_mean=[mean],
        latents_std=[std],
    )
    for parameter in vae.parameters():
        parameter.zero_()
    for half, channels in ((vae.encoder, 3), (vae.decoder, 1)):
        half.norm_out.gamma.fill_(2**-0.5)  # the constants (1, 1) then have norm 1
        sign = torch.tensor([1.0, -1.0, 0.0, 0.0]).view(4, 1)
        _centre(half.conv_in).copy_(SMALL / channels * sign.expand(4, channels))
        half.conv_in.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    # In the sum of both silus the odd parts cancel: silu(a) - silu(-a) = a.
    back = torch.tensor([[1.0, -1.0, 0.0, 0.0]]) / SMALL
    _centre(vae.encoder.conv_out)[:1] = back
    vae.encoder.conv_out.bias[1] = -30.0  # the logarithm of the posterior's variance
    _centre(vae.decoder.conv_out).copy_(back.expand(3, 4))
    _centre(vae.quant_conv).copy_(torch.eye(2))
    _centre(vae.post_quant_conv).fill_(1.0)
    return vae.eval()


def _centre(convolution: Any) -> torch.Tensor:
    """(out, in), a view of a causal convolution's weight that sees the same pixel of the same frame."""
    weight: torch.Tensor = convolution.weight
    _, _, _, height, width = weight.shape
    return weight[:, :, -1, height // 2, width // 2]

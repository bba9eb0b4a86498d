"""A tiny random CLIP in transformers' layout, made in a second, without a download."""

import pytest
import torch

transformers = pytest.importorskip("transformers")


def save_clip(path, seed=0):
    """A folder with the model, a tokenizer of single bytes, and Pillow's image processor."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    n, size = len(words), {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": n - 2, "eos_token_id": n - 1, "pad_token_id": n - 1}
    config = transformers.CLIPConfig(
        text_config={**size, **special, "vocab_size": n, "max_position_embeddings": 16},
        vision_config={**size, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.CLIPModel(config)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.2 * torch.randn(value.shape))
    model.save_pretrained(path)
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.CLIPImageProcessorPil(**sides).save_pretrained(path)
    transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(path)
    return path

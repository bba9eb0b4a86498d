"""The optimiser and its learning-rate schedule."""

import math

import pytest
from torch import nn

from facm.runs.optim import AdamW, Constant, CosineDecay


def test_decays():
    progress = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [Constant()(p) for p in progress] == [1] * 5
    cosine = [(1 + math.cos(math.pi * p)) / 2 for p in progress]
    assert [CosineDecay()(p) for p in progress] == pytest.approx(cosine)
    assert [CosineDecay(0.2)(p) for p in progress] == pytest.approx([0.2 + 0.8 * c for c in cosine])


def test_a_decay_stays_at_its_end_beyond_the_run():
    assert CosineDecay(0.2)(1.5) == pytest.approx(0.2)


def test_learning_rate_warms_up_linearly_and_then_decays_over_the_whole_run():
    def cosine(progress):
        return (1 + math.cos(math.pi * progress)) / 2

    optimizer = AdamW(lr=2.0, warmup_images=100, decay=CosineDecay())
    rates = [optimizer.learning_rate(n, 1000) for n in (10, 50, 100, 500, 1000)]
    assert rates == pytest.approx([2 * 0.1 * cosine(0.01), 2 * 0.5 * cosine(0.05), 2 * cosine(0.1), 1.0, 0.0])
    assert AdamW(lr=3.0).learning_rate(1, 1000) == 3.0
    assert AdamW(lr=3.0, warmup_images=10).learning_rate(500, 1000) == 3.0


def test_optimiser_is_built_as_configured_over_what_can_be_trained():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    group = AdamW(lr=0.3, betas=(0.8, 0.95), weight_decay=0.01, eps=1e-6).build(network).param_groups[0]
    assert [p is network.weight for p in group["params"]] == [True]
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.3, (0.8, 0.95), 0.01, 1e-6)
    network.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        AdamW().build(network)


def test_defaults_are_table_5():
    optimizer = AdamW()
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.eps) == (1e-4, (0.9, 0.999), 0.0, 1e-8)
    assert (optimizer.warmup_images, optimizer.decay, optimizer.clip) == (0, Constant(), 1.0)


@pytest.mark.parametrize(
    ("option", "value"), [("lr", 0.0), ("lr", -1.0), ("clip", 0.0), ("clip", float("nan")), ("warmup_images", -1)]
)
def test_an_impossible_option_is_an_error_that_names_it(option, value):
    with pytest.raises(ValueError, match=f"AdamW: {option} = {value}"):
        AdamW(**{option: value})

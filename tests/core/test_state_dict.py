"""Weights that do not fit are refused by name."""

import pytest
import torch
from torch import nn

from facm.core.state_dict import CheckpointError, load_strictly, without_wrappers
from facm.networks.lightning_dit import LightningDiT
from facm.networks.mlp import MLP


def test_another_networks_weights_are_refused_with_their_names():
    with pytest.raises(CheckpointError, match=r"x.st does not fit MLPNetwork") as error:
        load_strictly(MLP(width=16).build(), MLP(width=8, depth=4, num_classes=2).build().state_dict(), "x.st")
    for part in ("unexpected: labels.weight, layers.3", "of another shape: inward.weight (8, 7) instead of (16, 7)"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match=r"4 missing: layers\.2"):
        load_strictly(MLP().build(), MLP(depth=2).build().state_dict(), "x.st")


TINY = LightningDiT(input_size=8, patch_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=2)


def test_only_the_second_time_may_be_missing_where_weights_start_from():
    from dataclasses import replace

    state, student = TINY.build().state_dict(), replace(TINY, auxiliary_time=True).build()
    may_miss = student.zero_init_prefixes
    load_strictly(student, state, "teacher", may_miss)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in state.items())
    with pytest.raises(CheckpointError, match="4 missing: r_embedder"):
        load_strictly(student, state, "teacher")
    state.pop("final_layer.linear.bias")
    with pytest.raises(CheckpointError, match=r"1 missing: final_layer\.linear\.bias"):
        load_strictly(student, state, "teacher", may_miss)


def test_a_buffer_is_loaded_too():
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source(torch.randn(8, 3))
    load_strictly(target, source.state_dict(), "x")
    assert torch.equal(target.running_mean, source.running_mean)


def test_names_of_wrappers_are_taken_off_wherever_they_stand():
    names = ["module._orig_mod.a", "blocks.0._checkpoint_wrapped_module.b", "_fsdp_wrapped_module.c._orig_mod.d"]
    found = without_wrappers({name: torch.tensor(i) for i, name in enumerate([*names, "modules.e"])}, "x.pt")
    assert {name: int(value) for name, value in found.items()} == {"a": 0, "blocks.0.b": 1, "c.d": 2, "modules.e": 3}


@pytest.mark.parametrize("twin", ["module.a.b", "a._orig_mod.b", "a.module.b"])
def test_two_weights_that_become_one_are_refused(twin):
    with pytest.raises(ValueError, match=rf"x.pt holds a\.b twice, as a\.b and as {twin}"):
        without_wrappers({"a.b": torch.ones(1), twin: torch.zeros(1)}, "x.pt")

"""What all adapters take from the network inside, and the names of their weights."""

import math

import pytest
import torch

from facm.networks.adapters.base import adapters_of, inner_config, unlike
from facm.networks.adapters.edm import EDM, noise_condition
from facm.networks.adapters.foreign import Foreign
from facm.networks.adapters.simple_edm import SimpleEDM
from facm.networks.adapters.variance_preserving import VariancePreserving, log_noise_ratios, timestep
from facm.networks.mlp import MLP

ADAPTERS = [EDM, SimpleEDM, Foreign, VariancePreserving]
FULL = MLP(dim=3, width=8, depth=1, auxiliary_time=True, weight_head=True)
HEADED = MLP(dim=3, width=8, depth=1, weight_head=True)
T = torch.tensor([0.2, 0.7, 1.4], dtype=torch.float64)
REFLECTED = math.log(0.002) / 2 - noise_condition(2 - T[2:], 0.002, 80.0)
RATIOS = log_noise_ratios(VariancePreserving(HEADED))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_weights_keep_their_names_behind_one_prefix(adapter):
    network = adapter(FULL).build()
    assert list(network.state_dict()) == [f"inner.{name}" for name in FULL.build().state_dict()]
    assert network.zero_init_prefixes == ("inner.head.",)


@pytest.mark.parametrize(("adapter", "passes_r"), list(zip(ADAPTERS, (True, True, False, False), strict=True)))
def test_a_second_time_is_offered_only_where_it_is_passed_on(adapter, passes_r):
    assert adapter(FULL).build().auxiliary_time is passes_r
    assert adapter(MLP()).build().auxiliary_time is False


@pytest.mark.parametrize(
    ("config", "time"),
    [
        (SimpleEDM(HEADED), T),
        (EDM(HEADED), torch.cat([noise_condition(T[:2], 0.002, 80.0), REFLECTED])),
        (Foreign(HEADED, time_scale=1000), 1000 * (1 - T)),
        (Foreign(HEADED, reversed_time=False), T),
        (VariancePreserving(HEADED), timestep(torch.where(T > 1, 2 - T, T), RATIOS) * torch.where(T > 1, -1, 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_head_is_asked_at_the_time_that_the_network_inside_sees(config, time):
    network, seen = config.build().double(), {}
    torch.nn.init.normal_(network.inner.head[2].weight)
    torch.testing.assert_close(network.inner_time(T), time)
    log_weight = network.log_weight(T)
    assert log_weight.std() > 0
    torch.testing.assert_close(log_weight, network.inner.log_weight(time))
    network.inner.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    network(torch.zeros(3, 3, dtype=torch.float64), T)
    torch.testing.assert_close(seen["t"], time)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_without_a_head_there_is_no_weight(adapter):
    network = adapter(MLP()).build()
    assert network.weight_head is False
    with pytest.raises(ValueError, match="weight_head = False, expected weight_head = True"):
        network.log_weight(T)


def test_what_lies_inside_is_found():
    config = EDM(SimpleEDM(MLP(width=8), sigma_data=0.25))
    network = config.build()
    assert inner_config(config) == MLP(width=8)
    assert adapters_of(network) == [
        "EDM(sigma_data=0.5, sigma_min=0.002, sigma_max=80.0)",
        "SimpleEDM(sigma_data=0.25)",
    ]
    assert unlike(network, MLP(width=8, dropout=0.5).build()) == []
    assert unlike(network, MLP(width=9).build()) == ["width = 9, 8 here"]

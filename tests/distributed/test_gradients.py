"""When gradients are reduced, how they are clipped, and that those that were not are named."""

import contextlib

import pytest
import torch
from torch import nn

from facm.distributed.gradients import check_gradients, check_parameters, clipping_divisor, gradient_norm, reducing
from facm.distributed.process_group import ALONE


class Ddp:
    """What of DDP is asked here."""

    def __init__(self):
        self.synchronises = True

    @contextlib.contextmanager
    def no_sync(self):
        self.synchronises = False
        yield
        self.synchronises = True


class Fsdp:
    """What of FSDP2 is asked here."""

    def set_requires_all_reduce(self, value):
        self.synchronises = value


@pytest.mark.parametrize("wrapped", [Ddp(), Fsdp()], ids=["ddp", "fsdp"])
def test_gradients_are_reduced_between_replicas_in_the_last_part_of_a_step(wrapped):
    found = []
    for last in (False, False, True):
        with reducing(wrapped, last):
            found.append(wrapped.synchronises)
    assert found == [False, False, True]


def test_a_network_of_one_process_has_nothing_to_reduce():
    with reducing(nn.Linear(1, 1), last=False) as context:
        assert context is None


@pytest.mark.parametrize(("bound", "kept"), [(10.0, 1.0), (2.5, 0.5), (float("inf"), 1.0)])
def test_the_norm_is_over_all_parameters_and_the_update_is_that_of_clipped_gradients(bound, kept):
    network, clipped = nn.Linear(2, 1), nn.Linear(2, 1)
    clipped.load_state_dict(network.state_dict())
    gradients = torch.tensor([[0.0, 3.0]]), torch.tensor([4.0])
    network.weight.grad, network.bias.grad = (g.clone() for g in gradients)
    clipped.weight.grad, clipped.bias.grad = (kept * g for g in gradients)
    norm = gradient_norm(network)
    assert norm.item() == 5.0
    optimizers = [torch.optim.AdamW(n.parameters(), lr=0.1, eps=1.0, fused=True) for n in (network, clipped)]
    optimizers[0].grad_scale = clipping_divisor(norm, bound)
    for optimizer in optimizers:
        optimizer.step()
    for mine, other in zip(network.parameters(), clipped.parameters(), strict=True):
        torch.testing.assert_close(mine, other)  # eps of 1 tells clipped gradients from others


def ranks_hold(monkeypatch, change):
    """The other rank holds what ``change`` makes of this one's."""
    monkeypatch.setattr("facm.distributed.gradients.gathered", lambda world, mine: [mine, change(dict(mine))])


def test_another_gradient_on_another_rank_is_named(monkeypatch):
    network = nn.Linear(2, 1)
    network(torch.ones(1, 2)).sum().backward()
    check_gradients(network, ALONE)
    ranks_hold(monkeypatch, lambda mine: mine | {"bias": (None, (1.001, 1.001))})
    with pytest.raises(RuntimeError, match="gradient of parameter bias is not synchronised: rank 0 and rank 1 differ"):
        check_gradients(network, ALONE)
    ranks_hold(monkeypatch, lambda mine: mine | {"bias": (None, (1 + 1e-7, 1 + 1e-7))})  # rounding
    check_gradients(network, ALONE)
    ranks_hold(monkeypatch, lambda mine: mine | {"bias": None})
    with pytest.raises(RuntimeError, match="parameter bias has no gradient on rank 1 after the first step"):
        check_gradients(network, ALONE)


def test_gradients_that_are_not_finite_on_any_rank_are_the_same():
    """The step is skipped on all of them; nothing is to be said about it."""
    network = nn.Linear(2, 1)
    (network(torch.ones(1, 2)).sum() * torch.nan).backward()
    check_gradients(network, ALONE)


def test_another_parameter_on_another_rank_is_named(monkeypatch):
    network = nn.Linear(2, 1)
    check_parameters(network, ALONE)
    ranks_hold(monkeypatch, lambda mine: mine | {"bias": (7.0, 7.0)})
    with pytest.raises(RuntimeError, match="parameter bias differs between rank 0 and rank 1 before the first step"):
        check_parameters(network, ALONE)

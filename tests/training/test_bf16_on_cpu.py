"""bf16 autocast on a CPU against float32: the loss, the derivative and the gradients of FACM, within stated bounds."""

import pytest
import torch

from facm import FACM, Labels
from facm.core.types import Batch
from facm.derivative import Chain, OpLevel, Prediction
from facm.flow.time_conditioning import ExpandedInterval
from facm.networks.lightning_dit import LightningDiT

CONFIG = LightningDiT(8, 2, 4, 64, 3, 2, num_classes=10)


def network(seed=0):
    torch.manual_seed(seed)
    made = CONFIG.build()
    for p in made.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return made


def far(found, expected):
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


@pytest.mark.parametrize("strategy", [OpLevel(), Chain()], ids=str)
def test_value_and_tangent_in_bf16(strategy):
    """To 2 % of their norms, and in float32: nothing is summed in half precision outside of the network. The time's
    embedding is in float32, since the tangent of its sinusoids would be noise."""
    torch.manual_seed(1)
    x, v, t, y = torch.randn(8, 4, 8, 8), torch.randn(8, 4, 8, 8), torch.rand(8), torch.arange(8)
    function = Prediction(network(), ExpandedInterval().shortcut, y)
    expected = strategy(function, (x, t), (v, torch.ones_like(t)))
    with torch.autocast("cpu", torch.bfloat16):
        found = strategy(function, (x, t), (v, torch.ones_like(t)))
    for name, a, b in zip(("F", "dF"), found, expected, strict=True):
        assert a.dtype == torch.float32
        assert 1e-6 < far(a, b) < 0.02, name


def test_loss_and_gradients_of_facm_in_bf16():
    """The loss to 0.2 %, the gradient of all parameters together to 1 %.

    For a student that is not its teacher: where it is, the anchor's loss and gradient are rounding alone.
    """
    torch.manual_seed(1)
    batch, student, teacher = Batch(torch.randn(16, 4, 8, 8), torch.arange(16) % 10), network(), network(seed=2)
    losses, gradients = [], []
    for enabled in (False, True):
        student.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = FACM(Labels(10))(student, batch, torch.Generator().manual_seed(0), teacher)
        loss.total.backward()
        losses.append(loss.total.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
        assert gradients[-1].dtype == torch.float32
    errors = far(losses[1], losses[0]), far(gradients[1], gradients[0])
    assert errors[0] < 0.002, errors
    assert 1e-6 < errors[1] < 0.01, errors

"""The linear path and its velocity, against their formulas."""

import pytest
import torch

from facm.flow import paths
from tests.core.core_parts import randn


def test_the_path_runs_from_noise_to_data_with_constant_velocity():
    x_0, x_1 = randn(3, 2, seed=1), randn(3, 2, seed=2)
    assert torch.equal(paths.interpolate(x_0, x_1, torch.zeros(3)), x_0)
    assert torch.equal(paths.interpolate(x_0, x_1, torch.ones(3)), x_1)
    t = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    x_t = paths.interpolate(x_0, x_1, t)
    for i in range(3):
        torch.testing.assert_close(x_t[i], (1 - t[i]) * x_0[i] + t[i] * x_1[i])
    h = 1e-6
    slope = (paths.interpolate(x_0, x_1, t + h) - paths.interpolate(x_0, x_1, t - h)) / (2 * h)
    torch.testing.assert_close(paths.velocity(x_0, x_1), slope)


def test_x_1_is_recovered_from_the_velocity():
    x_0, x_1 = randn(5, 3, 2, seed=1), randn(5, 3, 2, seed=2)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    x_t, v = paths.interpolate(x_0, x_1, t), paths.velocity(x_0, x_1)
    torch.testing.assert_close(paths.x_1_from_velocity(x_t, v, t), x_1)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: paths.interpolate(a, b, torch.zeros(2)),
        paths.velocity,
        lambda a, b: paths.x_1_from_velocity(a, b, torch.full((2,), 0.5)),
    ],
)
def test_paths_refuse_to_broadcast(function):
    with pytest.raises(ValueError, match="expected equal shapes"):
        function(torch.zeros(2, 3), torch.zeros(2, 1))


def test_the_path_checks_its_time():
    with pytest.raises(ValueError, match="one time per sample"):
        paths.interpolate(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1))
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        paths.interpolate(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0.5, 1.5]))

"""LPIPS: torchmetrics' own numbers with the same weights, gradients, and files that are absent or something else."""

import importlib
import importlib.util

import pytest
import torch
from torch import nn

from facm.core.serialize import from_json, to_json
from facm.core.types import Batch
from facm.flow import LPIPS
from facm.flow.conditions import Unconditional
from facm.flow.distances import Scaled
from facm.flow.velocity import DataVelocity
from facm.objectives.discrete_cm import DiscreteCM
from facm.objectives.discrete_schedules import ShrinkingGap
from tests.core.core_parts import generator, randn
from tests.evaluation.evaluation_parts import torch_fidelity

WIDTHS = [[4, 4], [5, 5], [6, 6, 6], [7, 7, 7], [8, 8, 8]]
"""A VGG16 of a few channels: its layers in torchvision's order."""


def layers():
    torch.manual_seed(0)
    made, before = [], 3
    for block in WIDTHS:
        for width in block:
            made += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        made.append(nn.MaxPool2d(2))
    return nn.Sequential(*made)


@pytest.fixture
def files(tmp_path):
    network, lines = layers(), {f"lin{k}.model.1.weight": torch.rand(1, w[-1], 1, 1) for k, w in enumerate(WIDTHS)}
    state = {f"features.{name}": value for name, value in network.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg.pth")
    torch.save(lines, tmp_path / "linear.pth")
    return str(tmp_path / "vgg.pth"), str(tmp_path / "linear.pth")


@pytest.fixture
def reference(files, monkeypatch):
    """torchmetrics' LPIPS, whose network is the small one."""
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("needs torchmetrics")
    if importlib.util.find_spec("torch_fidelity") is not None:
        torch_fidelity()  # torchmetrics imports it
    theirs = importlib.import_module("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: layers())
    network = theirs._LPIPS(pretrained=False, net="vgg")
    for index, line in enumerate(network.lins):
        line.model[1].weight.data = torch.load(files[1], weights_only=True)[f"lin{index}.model.1.weight"]
    return network.eval()


def pictures(channels=3, size=32):
    return (randn(3, channels, size, size, seed=k).float().tanh() for k in (1, 2))


def slowly(files, x, y):
    """The formula, sample by sample and layer by layer."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    lines, found = torch.load(files[1], weights_only=True), []
    for pair in zip(x, y, strict=True):
        a, b = (((z - shift[:, None, None]) / scale[:, None, None])[None] for z in pair)
        total, block, network = 0.0, 0, layers()
        for layer in network:
            if isinstance(layer, nn.MaxPool2d):
                u, v = (z / (z.square().sum(1, keepdim=True) + 1e-8).sqrt() for z in (a, b))
                total += (lines[f"lin{block}.model.1.weight"][0] * (u - v)[0].square()).sum(0).mean()
                block += 1
            a, b = layer(a), layer(b)
        found.append(total)
    return torch.stack(found)


def test_the_numbers_are_those_of_the_formula(files):
    x, y = pictures()
    distance = LPIPS(*files, resize=None)
    torch.testing.assert_close(distance(x, y), slowly(files, x, y), rtol=1e-5, atol=1e-7)
    assert (LPIPS(*files)(y, y) == 0).all()


def test_small_pictures_are_enlarged_and_large_ones_are_not(files):
    x, y = pictures()
    larger = [nn.functional.interpolate(z, size=(48, 48), mode="bilinear", align_corners=False) for z in (x, y)]
    torch.testing.assert_close(LPIPS(*files, resize=48)(x, y), slowly(files, *larger), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(LPIPS(*files, resize=24)(x, y), slowly(files, x, y), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_the_numbers_and_gradients_are_those_of_torchmetrics(files, reference):
    x, y = pictures()
    x.requires_grad_()
    ours, theirs = LPIPS(*files, resize=None)(x, y), reference(x, y).flatten()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    (a,), (b,) = (torch.autograd.grad(value.sum(), x) for value in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_grey_pictures_are_three_equal_channels(files):
    x, y = pictures(1)
    distance = LPIPS(*files, resize=None)
    torch.testing.assert_close(distance(x, y), distance(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))


def test_consistency_distillation_learns_by_it(files):
    """A prediction's gradient comes through it and reaches no weight of the VGG."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.zeros(3, 32, 32))

        def forward(self, x, t, cond=None):
            return self.by.expand(x.shape)

    network = Shift()
    objective = DiscreteCM(Unconditional(), ShrinkingGap(), DataVelocity(), distance=Scaled(LPIPS(*files), 2.0))
    objective(network, Batch(next(pictures())), generator()).total.backward()
    assert network.by.grad.abs().max() > 0
    assert from_json(to_json(objective)) == objective


@pytest.mark.parametrize("shape", [(4, 8, 8), (2,), (3, 2, 8, 8)])
def test_what_is_no_picture_is_refused(files, shape):
    x = torch.zeros(2, *shape)
    with pytest.raises(ValueError, match=r"LPIPS: samples of shape .*, expected images \(3, H, W\) or \(1, H, W\)"):
        LPIPS(*files)(x, x)


def test_files_that_are_absent_or_something_else_are_named(files, tmp_path):
    x, y = pictures()
    with pytest.raises(ValueError, match=r"absent.pth: there is no such file; expected the weights of a VGG"):
        LPIPS(str(tmp_path / "absent.pth"))(x, y)
    with pytest.raises(ValueError, match=r"absent.pth: there is no such file; expected the linear weights of LPIPS"):
        LPIPS(files[0], str(tmp_path / "absent.pth"))(x, y)
    with pytest.raises(ValueError, match=r"linear.pth has no features.0.weight; expected the weights of a VGG"):
        LPIPS(files[1])(x, y)
    with pytest.raises(ValueError, match=r"vgg.pth does not fit .*, whose features have \[4, 5, 6, 7, 8\] channels"):
        LPIPS(files[0], files[0])(x, y)
    torch.save({"features.0.weight": torch.zeros(4, 3, 11, 11), "features.0.bias": torch.zeros(4)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth: features.0 is no convolution of a VGG"):
        LPIPS(str(tmp_path / "a.pth"))(x, y)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth holds more than named tensors, or less"):
        LPIPS(str(tmp_path / "list.pth"))(x, y)


def test_the_linear_weights_of_torchmetrics_are_found(files):
    """They are VGG16's, of 64 to 512 channels, which the small one has not."""
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("needs torchmetrics")
    with pytest.raises(ValueError, match=r"lpips_models.vgg.pth does not fit"):
        LPIPS(files[0])(*pictures())


def test_without_torchmetrics_the_linear_weights_are_asked_for(files, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"linear = '' and torchmetrics is not installed; expected a file of the linear"
    ):
        LPIPS(files[0], resize=None)(*pictures())

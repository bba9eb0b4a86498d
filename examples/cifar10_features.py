"""Your own features: a CIFAR-10 classifier as the judge of CIFAR-10 generators. What it measures is no FID.

    python examples/cifar10_features.py --weights cifar10_resnet56.pth --cifar10 cifar-10-binary.tar.gz --n 5000
    python examples/cifar10_features.py ... --stats cifar10_train_resnet56_stats.npz

The ResNet-56 of akamaster/pytorch_resnet_cifar10 (BSD 2-Clause; 94 % accurate), in the layout of its state dict. Prints
the accuracy on test images and their Frechet distance from the training set, or from its statistics in a file: with
all 10,000 about 0.05, the floor for that many samples. In your own code:
build_evaluator(dataset, device, ResNet56("...pth")).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import BatchNorm2d, Conv2d, Linear, Module, Sequential
from torch.nn import functional as F

from facm.core.untrusted.torch_files import read_foreign
from facm.data.cifar10 import Cifar10
from facm.evaluation import Measure, build_reference, identity_of, load_reference


@dataclass(frozen=True)
class ResNet56:
    """Features (B, 64), the last average pooling; 10 classes in CIFAR-10's order. weights: the .pth file."""

    weights: str

    def build(self, dataset=None, device="cpu"):
        if dataset is not None and tuple(dataset.shape) != (3, 32, 32):
            raise ValueError(f"ResNet56: samples of shape {tuple(dataset.shape)}, expected CIFAR-10's (3, 32, 32)")
        content = read_foreign(Path(self.weights), "the weights of a CIFAR-10 ResNet-56")
        state = content.get("state_dict", content)
        network = ResNet56Network()
        try:
            network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        except RuntimeError as error:
            raise ValueError(f"{self.weights} does not hold a CIFAR-10 ResNet-56: {error}") from error
        network.identity = identity_of("cifar10-resnet56", network)
        return network.requires_grad_(False).train(False).to(device)


class Block(Module):
    """Two 3 x 3 convolutions; the shortcut has no weights: every second pixel, and zeros for the new channels."""

    def __init__(self, inward, width):
        super().__init__()
        self.stride, self.new = width // inward, width - inward
        self.conv1 = Conv2d(inward, width, 3, self.stride, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(width)

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        half = self.new // 2
        return F.relu(h + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half)))


class ResNet56Network(Module):
    num_features, num_classes = 64, 10

    def __init__(self):
        super().__init__()
        self.identity = "cifar10-resnet56-untrained"
        self.conv1, self.bn1 = Conv2d(3, 16, 3, 1, 1, bias=False), BatchNorm2d(16)
        self.layer1 = Sequential(*(Block(16, 16) for _ in range(9)))
        self.layer2 = Sequential(Block(16, 32), *(Block(32, 32) for _ in range(8)))
        self.layer3 = Sequential(Block(32, 64), *(Block(64, 64) for _ in range(8)))
        self.linear = Linear(64, 10)

    def forward(self, x):
        mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])  # as it was trained
        x = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        h = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(h))).mean((2, 3))

    def classify(self, x):
        return self.linear(self(x))

    def train(self, mode=True):  # batch statistics would make a sample's features those of its company
        return super().train(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="cifar10_resnet56 .pth")
    parser.add_argument("--cifar10", required=True, help="folder, tar or zip of CIFAR-10, see facm.data.Cifar10")
    parser.add_argument("--stats", type=Path, help="statistics of the training set (.npz); else they are computed")
    parser.add_argument("--n", type=int, default=10_000, help="test images, evenly spaced")
    options = parser.parse_args()
    test = Cifar10(options.cifar10, split="test").open()
    network = ResNet56(options.weights).build(test, "cuda" if torch.cuda.is_available() else "cpu")
    if options.stats:
        reference = load_reference(options.stats, network)
    else:
        reference = build_reference(Cifar10(options.cifar10).open(), network)
    measure = Measure(network, reference)
    for chosen in np.array_split(np.linspace(0, len(test) - 1, options.n).round().astype(int), options.n // 250 + 1):
        batch = test.read(chosen)
        measure.update(batch.x_1, batch.cond)
    result = measure.result()
    print(f"{result.features}, n = {result.n} against {result.n_reference}: accuracy {result.accuracy:.4f}, ", end="")
    print(f"Frechet distance {result.frechet_distance:.4f} (not FID)")


if __name__ == "__main__":
    main()

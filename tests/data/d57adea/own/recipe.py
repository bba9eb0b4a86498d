"""A recipe with an objective of its own."""

from dataclasses import dataclass

from facm import Labels, Run, FlowMatching
from facm.data import Moons
from facm.networks.mlp import MLP


@dataclass(frozen=True)
class Mine:
    condition: Labels = Labels(2)

    def __call__(self, network, batch, rng, teacher=None):
        return FlowMatching(self.condition)(network, batch, rng, teacher)


def run(images: int = 64) -> Run:
    """Flow matching, wrapped."""
    return Run(network=MLP(width=8, depth=1, num_classes=3), data=Moons(n=64), objective=Mine(), images=images, batch_size=16)

"""Networks, one file each, and the adapters for networks of other conventions."""

from facm.networks.adapters.edm import EDM
from facm.networks.adapters.foreign import Foreign
from facm.networks.adapters.simple_edm import SimpleEDM
from facm.networks.adapters.variance_preserving import VariancePreserving
from facm.networks.ddpm_pp import DDPMpp
from facm.networks.given import GivenNetwork, given_network
from facm.networks.lightning_dit import LightningDiT
from facm.networks.mlp import MLP

__all__ = [
    "EDM",
    "MLP",
    "DDPMpp",
    "Foreign",
    "GivenNetwork",
    "LightningDiT",
    "SimpleEDM",
    "VariancePreserving",
    "given_network",
]

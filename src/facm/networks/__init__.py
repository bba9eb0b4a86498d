"""Networks, one file each, and the adapters through which foreign ones are seen."""

from facm.networks.adapters import Foreign
from facm.networks.ddpm_pp import DDPMpp
from facm.networks.edm import EDM
from facm.networks.lightning_dit import LightningDiT
from facm.networks.mlp import MLP
from facm.networks.simple_edm import SimpleEDM
from facm.networks.variance_preserving import VariancePreserving

__all__ = ["EDM", "MLP", "DDPMpp", "Foreign", "LightningDiT", "SimpleEDM", "VariancePreserving"]

"""Text-to-image and video models of diffusers by name: their conventions, data, adapters (LoRA) and export."""

from facm.foundation.captions.condition import Captions
from facm.foundation.captions.dataset import Captioned
from facm.foundation.experts.teacher import FromExperts, OtherExpert
from facm.foundation.lora import LoRA
from facm.foundation.network import DiffusersModel
from facm.foundation.teacher import FromModel, OwnBase

__all__ = ["Captioned", "Captions", "DiffusersModel", "FromExperts", "FromModel", "LoRA", "OtherExpert", "OwnBase"]

"""The flow between noise and data: times, weightings, distances, conditions, guidance."""

from facm.flow.distances import L2, L2Cosine, NormL2, PseudoHuber, Scaled
from facm.flow.lpips import LPIPS
from facm.flow.phases import Phases
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.flow.times import ArctanLogNormal, LogitNormal, Shifted, Sorted, Squeezed, Uniform
from facm.flow.two_experts import TwoScales
from facm.flow.weighting import Cosine, One, OneMinusPower

__all__ = [
    "L2",
    "LPIPS",
    "ArctanLogNormal",
    "AuxiliaryTime",
    "Cosine",
    "ExpandedInterval",
    "L2Cosine",
    "LogitNormal",
    "NormL2",
    "One",
    "OneMinusPower",
    "Phases",
    "PseudoHuber",
    "Scaled",
    "Shifted",
    "Sorted",
    "Squeezed",
    "TwoScales",
    "Uniform",
]

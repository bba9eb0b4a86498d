"""The flow between noise and data: times, weightings, distances, conditions, guidance."""

from facm.distances import L2, L2Cosine, NormL2, PseudoHuber, Scaled
from facm.tasks import AuxiliaryTime, ExpandedInterval
from facm.times import ArctanLogNormal, LogitNormal, Uniform
from facm.weights import Cosine, One, OneMinusPower

__all__ = [
    "L2",
    "ArctanLogNormal",
    "AuxiliaryTime",
    "Cosine",
    "ExpandedInterval",
    "L2Cosine",
    "LogitNormal",
    "NormL2",
    "One",
    "OneMinusPower",
    "PseudoHuber",
    "Scaled",
    "Uniform",
]

"""Frechet distance, precision and recall, and class accuracy, in features of the user's choice."""

from facm.evaluation.classifier import SmallClassifier
from facm.evaluation.features import FeatureExtractor, Features, Identity
from facm.evaluation.frechet import Moments, frechet_distance
from facm.evaluation.metrics import Measure, Measurement, Reference, build_reference, quantise, reference_floor
from facm.evaluation.neighbours import precision_recall
from facm.identity import identity_of

__all__ = [
    "FeatureExtractor",
    "Features",
    "Identity",
    "Measure",
    "Measurement",
    "Moments",
    "Reference",
    "SmallClassifier",
    "build_reference",
    "frechet_distance",
    "identity_of",
    "precision_recall",
    "quantise",
    "reference_floor",
]

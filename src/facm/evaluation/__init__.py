"""FID, Inception score, KID, precision and recall, FD-DINOv2, CLIP score, and the same in features of your own."""

from facm.core.hashing import identity_of
from facm.evaluation.classifier import SmallClassifier
from facm.evaluation.clip import CLIP
from facm.evaluation.dinov2 import DINOv2
from facm.evaluation.evaluator import (
    CLIPEvaluator,
    Evaluator,
    build_clip,
    build_evaluator,
    evaluator_from_statistics,
)
from facm.evaluation.features import FeatureExtractor, Features, Identity, PretrainedFeatures, quantise
from facm.evaluation.frechet import Moments, frechet_distance
from facm.evaluation.inception import Inception
from facm.evaluation.inception_score import InceptionScore
from facm.evaluation.kid import KernelDistance
from facm.evaluation.metrics import Measure, Measurement, MeasureSettings
from facm.evaluation.precision_recall import precision_recall
from facm.evaluation.reference import Reference, build_reference, load_reference, reference_floor, save_reference
from facm.evaluation.row import Row, append_row
from facm.evaluation.samples import Sampling

__all__ = [
    "CLIP",
    "CLIPEvaluator",
    "DINOv2",
    "Evaluator",
    "FeatureExtractor",
    "Features",
    "Identity",
    "Inception",
    "InceptionScore",
    "KernelDistance",
    "Measure",
    "MeasureSettings",
    "Measurement",
    "Moments",
    "PretrainedFeatures",
    "Reference",
    "Row",
    "Sampling",
    "SmallClassifier",
    "append_row",
    "build_clip",
    "build_evaluator",
    "build_reference",
    "evaluator_from_statistics",
    "frechet_distance",
    "identity_of",
    "load_reference",
    "precision_recall",
    "quantise",
    "reference_floor",
    "save_reference",
]

"""Mutants of what samples are measured with."""

from tests.mutants import Mutant

METRICS = "tests/evaluation/test_metrics.py"

MUTANTS = (
    Mutant(
        "evaluation/features.py",
        "return features_of(extractor, as_stored(x))",
        "return features_of(extractor, x)",
        (f"{METRICS}::test_generated_images_are_quantised_and_toys_are_not",),
    ),
    Mutant(
        "evaluation/frechet.py",
        "return max(float(distance), 0.0)",
        "return float(distance)",
        ("tests/evaluation/test_frechet.py::test_rounding_makes_no_distance_negative",),
    ),
    Mutant(
        "evaluation/metrics.py",
        "n >= SPLITS",
        "n > SPLITS",
        (f"{METRICS}::test_the_inception_score_needs_a_sample_for_each_of_its_ten_parts",),
    ),
)

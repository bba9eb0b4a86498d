"""Table 4: the weighting functions alpha(t) and beta(t) of the shortcut loss."""

from __future__ import annotations

from facm.flow.weighting import Cosine, One, OneMinusPower, Weight
from facm.studies.rows import Bench, published
from facm.studies.study import Study

ROWS: tuple[tuple[str, str, Weight, Weight, float], ...] = (  # published: FID with two steps on ImageNet 256
    ("facm-1-1", "1, 1", One(), One(), 1.45),
    ("facm-1-cos", "1, cos(pi t / 2)", One(), Cosine(), 1.39),
    ("facm-power-1", "1 - t^0.5, 1", OneMinusPower(0.5), One(), 1.42),
    ("facm-power-power", "1 - t^0.5, 1 - t^0.5", OneMinusPower(0.5), OneMinusPower(0.5), 1.37),
    ("facm-cos-cos", "cos(pi t / 2), cos(pi t / 2)", Cosine(), Cosine(), 1.40),
    ("facm", "1 - t^0.5, cos(pi t / 2)", OneMinusPower(0.5), Cosine(), 1.32),
)


def weights(bench: Bench) -> Study:
    """The six pairs of weighting functions; the published numbers are FIDs with two steps on ImageNet 256."""
    return Study(
        title="Weighting functions",
        source="Table 4",
        question="Do alpha(t) and beta(t) decide how good the student is?",
        teachers=(bench.teacher(),),
        entries=tuple(
            published(bench.facm(name, f"alpha, beta = {label}", alpha=alpha, beta=beta), {2: fid})
            for name, label, alpha, beta, fid in ROWS
        ),
    )

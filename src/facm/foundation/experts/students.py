"""What a student of two experts learns: all times in one network, or the times of one expert, half of a pair.

one          one student of both experts, for all times; it begins as the expert of low noise
high-noise   half of a pair: jumps from noise to the boundary, t_b = 1 - boundary
low-noise    half of a pair: jumps from t_b, and all times after it, to data
"""

from __future__ import annotations

from facm.flow.phases import WHOLE, Phases
from facm.foundation.folder import SECOND, TRANSFORMER, Part

PARTS: dict[str, Part] = {"one": SECOND, "high-noise": TRANSFORMER, "low-noise": SECOND}
"""Student -> the expert that it begins as."""
EXPERTS = ("high-noise", "low-noise")
"""Halves, each of one expert's times."""


def check_student(student: str) -> None:
    """Raise ValueError for a student that there is not."""
    if student not in PARTS:
        raise ValueError(f"student = {student!r}, expected one of {', '.join(PARTS)}")


def phases_of(student: str, boundary: float) -> Phases:
    """The times that the student learns, and where it jumps from each."""
    t_b = 1 - boundary
    return {"one": Phases(), "high-noise": Phases((0.0, t_b)), "low-noise": Phases((t_b, 1.0))}[student]


def student_with(bounds: tuple[float, ...]) -> str:
    """The student that learned these times, in words."""
    if bounds[0] == 0 and bounds[-1] < 1:
        return "the high-noise half of a pair"
    if bounds[0] > 0 and bounds[-1] == 1:
        return "the low-noise half of a pair"
    return "one student of all times" if bounds == WHOLE else f"a student of the phases {bounds}"

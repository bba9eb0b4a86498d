"""Mutants of files that others read."""

from tests.mutants import Mutant

MUTANTS = (
    Mutant(
        "pretrained/convert.py",
        '{True: "PostHocEMA, by facm", False: "Standard EMA, by facm",',
        '{False: "PostHocEMA, by facm", True: "Standard EMA, by facm",',
        ("tests/pretrained/test_convert.py::test_an_exported_student_is_one_and_a_teacher_is_a_teacher",),
    ),
)

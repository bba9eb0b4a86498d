"""Mutants of files that others read."""

from tests.mutants import Mutant

BOUNDS = ("tests/pretrained/test_trained.py::test_a_file_says_the_phases_of_its_student",)

MUTANTS = (
    Mutant(
        "pretrained/convert.py",
        '{True: "PostHocEMA, by facm", False: "Standard EMA, by facm",',
        '{False: "PostHocEMA, by facm", True: "Standard EMA, by facm",',
        ("tests/pretrained/test_convert.py::test_an_exported_student_is_one_and_a_teacher_is_a_teacher",),
    ),
    Mutant("pretrained/from_file.py", "bounds=found.bounds,", "", BOUNDS),
    Mutant("pretrained/convert.py", 'said["bounds"] = json.dumps(published.bounds)', "pass", BOUNDS),
    Mutant("pretrained/trained.py", 'said["bounds"] = json.dumps(trained.interface.bounds)', "pass", BOUNDS),
)

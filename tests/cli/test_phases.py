"""Students of phases by command: sampled as they were trained, and resumed as nothing else."""

import pytest

from facm.pretrained.trained import load_trained
from tests.cli.cli_parts import arrays, command, refused

RECIPES = """
from facm import FACM, DataVelocity, Guidance, Run, Unconditional
from facm.data import Noise
from facm.flow import Phases
from facm.networks.lightning_dit import LightningDiT

def student(bounds: tuple[float, ...] = (0.0, 0.125, 1.0)) -> Run:
    network = LightningDiT(4, 1, 1, 16, 1, 2, num_classes=0)
    objective = FACM(Unconditional(), DataVelocity(Guidance(1.0)), phases=Phases(bounds))
    return Run(network, Noise((1, 4, 4), n=16), objective, 16, 8)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    (folder / "mine.py").write_text(RECIPES)
    command("train", f"{folder / 'mine.py'}:student", "--out", folder / "student", "--quiet")
    return folder


def sampled(what, out, *options):
    command("sample", what, "--num-samples", 4, "--npz", "--out", out, *options)
    return arrays(out.with_suffix(".npz"))["images"]


def test_a_student_of_phases_is_sampled_through_them_from_its_run_and_from_a_file(folder, capsys):
    run, file = folder / "student", folder / "student.safetensors"
    assert load_trained(run).interface.bounds == (0.0, 0.125, 1.0)
    command("weights", "export", run, "--out", file)
    images = sampled(run, folder / "a.png", "--num-steps", 3)
    assert (images == sampled(file, folder / "b.png", "--num-steps", 3)).all()
    sampled(run, folder / "c.png", "--num-steps", 1, "--sampler", "euler")  # its flow has no phases
    for what in (run, file):
        for options, message in (
            (("--num-steps", 1), "--num-steps 1, expected at least 2, one evaluation for each phase"),
            (("--num-steps", 2, "--times", 0, 0.3), "all times at which a phase begins among them: (0.0, 0.125)"),
            (
                ("--num-steps", 2, "--sampler", "consistency"),
                "the network has learned to jump to the ends of its phases, (0.0, 0.125, 1.0); expected Phased(2,",
            ),
        ):
            words = refused(capsys, "sample", what, *options, "--out", folder / "no.png")
            assert message in words, words
    words = refused(capsys, "weights", "export", run, "--out", folder / "student.pt")
    assert "jumps to the ends of its phases, (0.0, 0.125, 1.0), which the authors' layout cannot say" in words


def test_a_student_of_other_phases_is_another_run(folder, capsys):
    recipe, run = f"{folder / 'mine.py'}:student", folder / "student"
    words = refused(capsys, "train", recipe, "--bounds", 0, 0.5, 1, "--out", run, "--resume")
    assert "holds another run than this command's (objective differ)" in words
    words = refused(capsys, "train", recipe, "--bounds", 0, 0.5, 0.5, "--out", folder / "other")
    assert "bounds = (0.0, 0.5, 0.5), expected times that increase strictly" in words
    assert not (folder / "other").exists()

"""facm sample: what it draws, what it refuses, and the options that it shares with facm evaluate."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

import facm
from facm.cli.sample import SampleOptions
from facm.data import Gaussian
from facm.networks.mlp import MLP
from facm.runs.folder import create
from tests.cli.cli_parts import arrays, command, refused
from tests.training.run_parts import flow_run, trained


@pytest.mark.parametrize("what", ["resume", "sample", "evaluate"])
def test_a_folder_that_is_no_run_is_named(tmp_path, capsys, what):
    for path in (tmp_path, tmp_path / "gone"):
        assert f"{path} is not a run folder: it has no run.json" in refused(capsys, what, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["sample", "evaluate"])
def test_a_run_without_a_checkpoint_is_an_error(tmp_path, capsys, what):
    folder = create(tmp_path / "run", flow_run())
    assert "has no checkpoint yet" in refused(capsys, what, folder.path)


@pytest.mark.parametrize("word", ["\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT THREE}", "--1", "9" * 5000])
def test_labels_are_plain_numbers(word):
    with pytest.raises(ValueError, match=r"--classes .*, expected numbers, as in 207,360"):
        SampleOptions(classes=(word,)).labels()


@pytest.mark.parametrize("words", [("",), (",",), (",,", ",")])
def test_classes_that_name_none_are_refused(words):
    with pytest.raises(ValueError, match=r"--classes .* names none, expected numbers, as in 207,360"):
        SampleOptions(classes=words).labels()


def test_samples_are_a_grid_and_arrays(runs, tmp_path, capsys):
    command(
        "sample", runs / "student", "--num-samples", 23, "--num-steps", 2, "--out", tmp_path / "new" / "x.png", "--npz"
    )
    assert f"23 samples, Consistency with 2 evaluations: {tmp_path}/new/x.png" in capsys.readouterr().out
    images = arrays(tmp_path / "new" / "x.npz")
    assert (images["images"].shape, images["images"].dtype) == ((23, 8, 8, 3), np.uint8)
    assert images["labels"].tolist() == [i % 10 for i in range(23)]
    with Image.open(tmp_path / "new" / "x.png") as grid:
        assert grid.size == (4 * (10 * 9 - 1), 4 * (3 * 9 - 1))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(runs, tmp_path):
    for name, options in {"a": [], "b": [], "c": ["--seed", 1]}.items():
        command(
            "sample",
            runs / "teacher",
            "--num-samples",
            6,
            "--num-steps",
            2,
            "--npz",
            "--out",
            tmp_path / f"{name}.png",
            *options,
        )
    read = {name: (tmp_path / f"{name}.png").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]
    one, two = arrays(tmp_path / "a.npz"), arrays(tmp_path / "b.npz")
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_samples_do_not_depend_on_how_many_are_drawn(runs, tmp_path):
    for n in (300, 7):
        command("sample", runs / "teacher", "--num-samples", n, "--npz", "--out", tmp_path / f"{n}.png")
    many, few = (arrays(tmp_path / f"{n}.npz")["images"] for n in (300, 7))
    assert np.array_equal(many[:7], few)


def test_sampling_again_never_overwrites(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "teacher", run)
    for _ in range(3):
        command("sample", run, "--num-samples", 2)
    name = f"{64:012d}-euler32-seed0"
    assert {p.name for p in (run / "samples").glob("*euler*")} == {f"{name}.png", f"{name}-2.png", f"{name}-3.png"}
    out = tmp_path / "x.png"
    command("sample", run, "--num-samples", 2, "--out", out)
    assert f"--out {out}: {out} exists and is not overwritten" in refused(
        capsys, "sample", run, "--num-samples", 2, "--out", out
    )


def test_classes_are_repeated_in_turn(runs, tmp_path):
    options = ["--num-samples", 5, "--classes", 3, 7, "--npz", "--out", tmp_path / "x.png"]
    command("sample", runs / "student", *options)
    assert arrays(tmp_path / "x.npz")["labels"].tolist() == [3, 7, 3, 7, 3]


def test_every_sampler_head_and_weight_gives_other_samples(runs, tmp_path):
    variants = {
        "consistency": [],
        "times": ["--times", 0, 0.7, 0.9],
        "shift": ["--shift", 3],
        "euler": ["--sampler", "euler"],
        "native": ["--sampler", "euler", "--head", "native"],
        "heun": ["--sampler", "heun"],
        "both heads": ["--sampler", "flow-jump"],
        "both heads, further": ["--sampler", "flow-jump", "--times", 0, 0.8],
        "ema": ["--ema", 0.2],
        "synthesised": ["--ema", 0.1],
        "raw": ["--raw"],
        "guided": ["--guidance-scale", 3],
    }
    images = {}
    for name, options in variants.items():
        command(
            "sample",
            runs / "student",
            "--num-samples",
            4,
            "--num-steps",
            3,
            "--npz",
            "--out",
            tmp_path / f"{name}.png",
            *options,
        )
        images[name] = arrays(tmp_path / f"{name}.npz")["images"]
    assert all(value.shape == (4, 8, 8, 3) for value in images.values())
    assert len({value.tobytes() for value in images.values()}) == len(variants)


SAMPLING_MISTAKES = [
    (["--num-steps", "0"], "--num-steps 0: zero steps make no sample"),
    (["--num-steps", "-1"], "--num-steps -1: zero steps make no sample"),
    (["--num-steps", "4", "--sampler", "heun"], "--num-steps 4, expected an odd number: N steps of Heun spend"),
    (["--guidance-scale", "0.5"], "--guidance-scale 0.5, expected a number within [1, "),
    (["--guidance-scale", "nan"], "--guidance-scale nan"),
    (["--guidance-low", "0.9", "--guidance-high", "0.1"], "--guidance-low 0.9, expected at most high = 0.1"),
    (["--ema", "0.7"], "--ema 0.7, expected a length within [1e-6, 0.28]"),
    (["--ema", "0.1", "--raw"], "--raw with --ema 0.1"),
    (["--shift", "0"], "--shift 0.0, expected a number within"),
    (["--times", "0", "0.5", "--num-steps", "3"], "--times (0.0, 0.5), expected 3 times"),
    (["--times", "0.5", "--num-steps", "1"], "expected times that start at 0"),
    (
        ["--times", "0", "0.3", "0.5", "--sampler", "flow-jump", "--num-steps", "3"],
        "--times (0.0, 0.3, 0.5), expected 2 times from 0, for --num-steps 3",
    ),
    (["--shift", "2", "--sampler", "flow-jump"], "--shift 2.0 with --sampler flow-jump, which has a schedule"),
    (["--times", "0", "0.5", "--sampler", "euler"], "--times (0.0, 0.5) with --sampler euler"),
    (["--seed", "-1"], "--seed -1, expected 0 or more"),
    (["--sampler", "euleer"], "invalid choice 'euleer' for argument '--sampler'"),
    (["--smapler", "euler"], "unknown option '--smapler': did you mean --sampler?"),
]


@pytest.mark.parametrize(("options", "words"), SAMPLING_MISTAKES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("what", ["sample", "evaluate"])
def test_a_sampling_option_that_makes_no_sense_is_named(runs, capsys, monkeypatch, what, options, words):
    monkeypatch.setattr("facm.evaluation.evaluator.build_evaluator", lambda *a: pytest.fail("work before the check"))
    before = {p for p in (runs / "student").rglob("*")}
    assert words in refused(capsys, what, runs / "student", *options)
    assert {p for p in (runs / "student").rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "--num-samples", "0"], "--num-samples 0, expected at least one sample"),
        (["sample", "--num-samples", "9" * 30], "expected at most 100000000"),
        (["evaluate", "--num-samples", "9" * 400], "expected at most 100000000"),
        (["sample", "--num-samples", "2.5"], "Error parsing --num-samples: no type"),
        (["sample", "--classes", "11"], "--classes 11, expected 0 to 9, or 10 for no class"),
        (["sample", "--classes", "3", "-1"], "--classes -1, expected 0 to 9"),
        (["sample", "--out", "grid"], "--out grid, expected a name that ends in .png"),
        (["evaluate", "--num-samples", "1"], "--num-samples 1, expected at least 2 samples to measure"),
        (["evaluate", "--num-steps"], "--num-steps is empty"),
        (["evaluate", "--num-steps", "1", "0"], "--num-steps 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_number_that_makes_no_sense_is_named(runs, capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, arguments[0], runs / "student", *arguments[1:])
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_classes_or_cannot_be_guided_is_said(recipes, capsys):
    run = flow_run(
        data=facm.data.Checkerboard(n=64), objective=facm.FlowMatching(facm.Unconditional(), label_dropout=0.0)
    )
    folder = trained(recipes / "plain", dataclasses.replace(run, network=MLP(width=8)))
    assert "--classes (1,), but the network is unconditional" in refused(capsys, "sample", folder.path, "--classes", 1)
    words = refused(capsys, "evaluate", folder.path, "--guidance-scale", 2, "--num-samples", 4)
    assert "no null condition to guide with" in words


def test_samples_that_are_no_pictures_are_numbers(tmp_path, capsys):
    objective = facm.FlowMatching(facm.Unconditional())
    run = facm.Run(MLP(2, 16, 1), Gaussian(), objective, images=32, batch_size=16)
    facm.train(run, tmp_path / "run", quiet=True)
    for out in ((), ("--out", tmp_path / "x.png")):
        command("sample", tmp_path / "run", "--num-samples", 5, *out)
    assert "for samples of shape (2,) cannot be drawn" in capsys.readouterr().out
    (first,) = (tmp_path / "run" / "samples").glob("*.npz")
    one, two = arrays(first), arrays(tmp_path / "x.npz")
    assert one["samples"].shape == (5, 2)
    assert np.array_equal(one["samples"], two["samples"])

"""The verbs from Python: a run without a recipe file that resumes, a network that is loaded, and the examples."""

import doctest
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import facm
from facm import Callback, StopTraining
from facm.api import distill, model, train
from facm.runs import log as logs
from facm.runs.folder import RunFolder, RunFolderError
from facm.sampling import Heun
from tests.training.run_parts import before_step, contents, facm_run, flow_run, signal_at


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A teacher and a student that were never interrupted."""
    root = tmp_path_factory.mktemp("whole")
    facm.train(flow_run(), root / "teacher", quiet=True)
    facm.train(facm_run(root / "teacher"), root / "student", quiet=True)
    return root


def test_import_waits_for_nothing_heavy():
    code = "import sys, facm; assert not {'torch', 'numpy', 'rich'} & set(sys.modules); assert 'train' in dir(facm)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("module", [train, model, distill])
def test_the_examples_of_the_docstrings(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if module is model:
        from facm.recipes.digits import digits_teacher

        facm.train(digits_teacher(images=1280), "runs/first", quiet=True)
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert found
    for test in sorted(found, key=lambda test: (test.name.endswith("resume"), test.name)):
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


@pytest.mark.parametrize("how", ["interrupt", "callback"])
def test_an_interrupted_run_is_saved_and_goes_on_to_the_same_bytes(whole, tmp_path, how):
    out, seen = tmp_path / "run", []

    def stop(record):
        seen.append(record["images"])
        if record["images"] == 112:
            raise StopTraining

    if how == "interrupt":
        with (
            before_step(signal_at(96, signal.SIGINT)),
            pytest.raises(KeyboardInterrupt, match=r"saved at 112 of 320 images in .*facm\.resume\(.* goes on"),
        ):
            facm.train(flow_run(), out, quiet=True)
    else:
        assert facm.train(flow_run(), out, callbacks=[stop], quiet=True).images_seen == 112
        assert seen == [112]
    with pytest.raises(RunFolderError, match="is in use and is never overwritten"):
        facm.train(flow_run(), out, quiet=True)
    assert facm.resume(out, quiet=True).images_seen == 320
    assert contents(RunFolder(out)) == contents(RunFolder(whole / "teacher"))
    assert facm.train(flow_run(), out, resume=True, quiet=True).images_seen == 320  # nothing is left to do
    with pytest.raises(RunFolderError, match=r"holds another run than this command's \(seed differ\)"):
        facm.train(flow_run(seed=1), out, resume=True, quiet=True)


def test_a_callback_is_told_everything_in_order(tmp_path):
    told = []

    class Watch(Callback):
        def on_begin(self, run, folder, images):
            told.append(("begin", run.images, folder, images))

        def on_log(self, record):
            told.append(("log", record["images"]))

        def on_checkpoint(self, images, checkpoint):
            assert checkpoint.exists()
            told.append(("checkpoint", images))

        def on_end(self, outcome):
            told.append(("end", outcome.images, outcome.finished))

    out = tmp_path / "run"
    facm.train(flow_run(), out, callbacks=[Watch()], quiet=True)
    steps = [("log", 112), ("log", 224), ("log", 320)]
    assert told[0] == ("begin", 320, out, 0)
    assert told[-1] == ("end", 320, True)
    assert [each for each in told if each[0] == "log"] == steps
    assert [each for each in told if each[0] == "checkpoint"] == [("checkpoint", k) for k in (80, 160, 240, 320)]


def test_samples_are_those_of_the_seed_whatever_the_batch(whole):
    student = facm.load(whole / "student")
    x = student.sample(7, seed=3)
    assert x.shape == (7, 2)
    assert x.dtype == torch.float32
    torch.testing.assert_close(student.sample(7, seed=3, batch_size=2), x)
    torch.testing.assert_close(student.sample(4, seed=3), x[:4])
    assert not torch.equal(student.sample(7, seed=4), x)
    assert torch.equal(student.sample(labels=[0, 1], n=4), student.sample(labels=[0, 1, 0, 1]))
    assert len(student.sample(labels=1)) == 1
    by_name, by_method = student.sample(5, 3, sampler="heun"), student.sample(5, sampler=Heun(3, "anchor"))
    assert torch.equal(by_name, by_method)
    assert facm.load(whole / "teacher").method().nfe == 32  # one step of a flow is an average
    assert student.method().nfe == 1


def test_a_network_is_written_and_opened_again(whole, tmp_path):
    student = facm.load(whole / "student")
    with pytest.raises(ValueError, match=r"out = .*x\.bin, expected a name that ends in \.safetensors"):
        student.export(tmp_path / "x.bin")
    file = student.export(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"exists and is not overwritten"):
        student.export(file)
    with pytest.raises(ValueError, match="raw = True with the file"):
        facm.load(file, raw=True)


def test_an_evaluation_is_a_row_of_the_runs_own(whole):
    student = facm.load(whole / "student")
    rows = student.evaluate(num_steps=(1, 2), num_samples=64)
    assert [row.method.nfe for row in rows] == [1, 2]
    recorded = logs.read(RunFolder(whole / "student").evaluations)[-2:]
    assert [row["frechet_distance"] for row in recorded] == [row.measurement.frechet_distance for row in rows]


WRONG = [
    (lambda s: s.sample(0), r"n = 0, expected a number of samples, at least 1"),
    (lambda s: s.sample(2.5), r"n = 2\.5, expected a number"),
    (lambda s: s.sample(2, seed=-1), r"seed = -1, expected an integer, 0 or more"),
    (lambda s: s.sample(2, 0), r"num_steps = 0: zero steps make no sample"),
    (lambda s: s.sample(2, labels=3), r"labels = 3, expected 0 to 1, or 2 for no class"),
    (lambda s: s.sample(2, labels=[]), r"labels is empty, expected at least one class"),
    (lambda s: s.sample(2, prompts="a fox"), r"prompts = 'a fox', and .* takes none"),
    (lambda s: s.sample(2, labels=1, cond=torch.zeros(2)), r"labels and cond are given, expected at most one"),
    (lambda s: s.sample(2, sampler="magic"), r"sampler = 'magic', expected one of auto, consistency"),
    (lambda s: s.sample(2, sampler=3), r"sampler = 3, expected a name, or a method"),
    (lambda s: s.sample(2, batch_size=0), r"batch_size = 0, expected a number of samples"),
    (lambda s: s.sample(2, guidance_scale=0.5), r"Guidance: scale = 0\.5, expected"),
    (lambda s: s.sample(2, height=8), r"height = 8, width = 0, frames = 0, expected them with prompts only"),
    (lambda s: s.evaluate(num_steps=()), r"num_steps is empty"),
    (lambda s: s.picture(s.sample(2)), r"cannot be drawn"),
    (lambda s: facm.train(3, "x"), r"run = 3, expected a facm\.Run"),
    (lambda s: facm.train(flow_run(), ""), r"out = '', expected the path of a folder"),
    (lambda s: facm.train(flow_run(), "x", callbacks=[3]), r"callbacks: 3, expected an object of facm\.Callback"),
    (lambda s: facm.train(flow_run(), "x", trackers="wandb"), r"trackers = 'wandb', expected a list of names"),
    (lambda s: facm.train(flow_run(), "x", device="tpu"), r"device = tpu, expected auto, cpu, cuda"),
    (lambda s: facm.load("nowhere"), r"nowhere is not a run folder"),
    (lambda s: facm.load(s.path, family="sit"), r"family = 'sit' with the run .*, expected it with a file only"),
]


@pytest.mark.parametrize(("act", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_bad_input_is_named(whole, tmp_path, monkeypatch, act, message):
    monkeypatch.chdir(tmp_path)
    student = facm.load(whole / "student")
    with pytest.raises((ValueError, RunFolderError), match=message):
        act(student)
    assert not list(tmp_path.iterdir())


ENV = {**os.environ, "PYTHONPATH": str(Path(facm.__file__).parents[1])}
HEAD = "from dataclasses import dataclass\nimport torch, facm\nfrom facm.data import Gaussian\n"
TRAIN = """
if __name__ == "__main__":
    run = facm.Run(Net(), Gaussian(), facm.FlowMatching(facm.Unconditional()), images=32, batch_size=16)
    facm.train(run, "run", quiet=True)
"""
AGAIN = "\nprint(facm.load('run').sample(3).shape)\n"
NET = """
@dataclass(frozen=True)
class Net:
    def build(self):
        return Inner()
class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
    def forward(self, x, t, cond=None):
        return self.layer(torch.cat([x, t[:, None]], 1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a file of its own", "the script itself"])
def test_a_network_of_ones_own_is_opened_later(tmp_path, where):
    own = where == "the script itself"
    (tmp_path / "parts.py").write_text(HEAD + NET)
    (tmp_path / "script.py").write_text(HEAD + (NET if own else "from parts import Net\n") + TRAIN)
    (tmp_path / "again.py").write_text(HEAD + (NET if own else "") + AGAIN)

    def python(*words):
        command = [sys.executable, *words]
        return subprocess.run(command, check=False, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=300)

    assert python("script.py").returncode == 0
    assert "torch.Size([3, 2])" in python("again.py").stdout
    shown = python("-m", "facm", "show", "run")
    if own:
        assert shown.returncode == 2
        assert "Net was defined in a notebook, or in a script itself: run its definition again there" in shown.stderr
    else:
        assert shown.returncode == 0
        assert "from parts import Net" in (tmp_path / "run" / "recipe.py").read_text()

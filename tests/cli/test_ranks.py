"""The command line on two ranks: training, going on, measuring, sampling."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from facm import cli
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from facm.pretrained.trained import load_trained
from facm.runs import log as logs
from facm.runs.folder import RunFolder
from tests.distributed.parallel_parts import ENVIRONMENT, call, difference, teacher_run, torchrun, train_in

RECIPE = """
from facm.data import Digits
from tests.distributed.parallel_parts import Awake, teacher_run

def run(images: int = 80):
    return teacher_run(images=images, data=Digits())  # real images, which can be measured
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of a recipe file, whose network other processes find through the file."""
    root = tmp_path_factory.mktemp("cli")
    (root / "mine.py").write_text(RECIPE)
    cli.main(["train", f"{root / 'mine.py'}:run", "--out", str(root / "run"), "--quiet"])
    return root


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own for the classifier that evaluations train."""
    ENVIRONMENT["FACM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del ENVIRONMENT["FACM_CACHE"]


def measured(path, n):
    """An evaluation in uneven blocks, with the features of the data itself and with an accuracy."""
    from pathlib import Path

    from facm.evaluation import Sampling, SmallClassifier, append_row
    from facm.evaluation.evaluate import evaluate
    from facm.evaluation.evaluator import build_evaluator
    from facm.sampling.methods import Euler

    with opened(Engine(timeout_s=300)) as world:
        trained = load_trained(Path(path))
        classifier = SmallClassifier(width=8, num_features=16, epochs=1)
        evaluator = build_evaluator(trained.dataset, world.device, classifier, world)
        row = evaluate(trained, Sampling(Euler(2), n, batch_size=32), evaluator)
        append_row(trained, row, world)
    return {
        name: row.to_json()[name] for name in ("frechet_distance", "precision", "recall", "accuracy", "n", "features")
    }


@pytest.mark.slow
def test_an_evaluation_does_not_depend_on_the_number_of_ranks(root, monkeypatch):
    two = call(2, "tests.cli.test_ranks", "measured", str(root / "run"), 150)
    monkeypatch.setenv("FACM_CACHE", ENVIRONMENT["FACM_CACHE"])
    assert two == [measured(root / "run", 150)] * 2
    assert len(logs.read(RunFolder(root / "run").evaluations)) == 2


@pytest.mark.slow
def test_samples_do_not_depend_on_the_number_of_ranks(root, tmp_path):
    command = ["sample", str(root / "run"), "--num-samples", "300", "--npz", "--out"]
    cli.main([*command, str(tmp_path / "1.png")])
    code, said, errors = torchrun(2, *command, tmp_path / "2.png")
    assert code == 0, errors
    assert said.count("300 samples") == 1
    one, two = (np.load(tmp_path / f"{ranks}.npz") for ranks in (1, 2))
    assert np.array_equal(one["images"], two["images"])
    assert np.array_equal(one["labels"], two["labels"])
    assert Image.open(tmp_path / "1.png").tobytes() == Image.open(tmp_path / "2.png").tobytes()


STOPS = """
import os
import signal
import time
from facm.data.stream import Stream
from tests.distributed.parallel_parts import Awake, teacher_run

original = Stream.at

def at(self, images):
    if self.ranks > 1 and images == 240:  # torchrun is told to stop, and tells both
        if self.rank == 0:
            os.kill(os.getppid(), signal.SIGTERM)
        while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # as it is once a signal was noted
            time.sleep(0.01)
    return original(self, images)

Stream.at = at

def run(images: int = 400):
    return teacher_run(images=images)
"""


@pytest.mark.slow
def test_train_stop_and_resume_on_other_numbers_of_ranks(tmp_path):
    """torchrun is told to stop in a sharded run; it goes on whole, in one process, and ends as if nothing had been."""
    recipe = tmp_path / "mine.py"
    recipe.write_text(STOPS)
    torchrun_ = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "facm"]
    command = ["train", f"{recipe}:run", "--out", str(tmp_path / "run"), "--engine.parallel", "fsdp"]
    process = subprocess.Popen(
        torchrun_ + command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said, errors = process.communicate()
    assert "SIGTERM: saved at" in said, errors
    assert said.count("go on with: facm resume") == 1
    folder = RunFolder(tmp_path / "run")
    reached = int(folder.checkpoints()[-1].name)
    assert reached == 256  # where the ranks look for signals next
    whole = train_in(tmp_path / "whole", teacher_run(images=400))
    cli.main(["resume", str(folder.path), "--quiet", "--engine.accumulate", "2"])
    assert folder.checkpoints()[-1].name == "000000000400.safetensors"
    assert difference(whole, folder) < 1e-6
    first, last = logs.read(folder.sessions)
    assert (first["ranks"], first["engine"]["parallel"], first["images"]) == (2, "fsdp", 0)
    assert (last["ranks"], last["engine"]["accumulate"], last["images"]) == (1, 2, reached)


def test_a_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "facm", "--version"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("facm ")

"""The CIFAR-10 recipes: their settings, and each of them trained and sampled at tiny width on stand-in images."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from facm.cli.lookup import find_recipe, recipes
from facm.core.types import NetworkConfig
from facm.data import Cifar10, cifar10
from facm.distributed.engine import Engine
from facm.flow.conditions import Labels, Unconditional
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.adapters.edm import EDM
from facm.objectives.facm import FACM
from facm.pretrained.from_file import load_file
from facm.pretrained.trained import FromRun, export, load_trained
from facm.runs.folder import create
from facm.sampling.generate import sample_balanced
from facm.sampling.methods import Consistency, Euler, Jumps
from facm.training.checks import check
from facm.training.loop import train

NAMES = [name for name in recipes() if name.startswith("cifar10-")]
TEACHERS = ("cifar10-teacher", "cifar10-cond-teacher", "cifar10-scm-teacher")
FAST = ("cifar10-teacher", "cifar10-student", "cifar10-cond-student", "cifar10-shortcut")
SOME_FAST = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NAMES]
CONDITIONAL = ("cifar10-cond-teacher", "cifar10-cond-student")
AUXILIARY = ("cifar10-mean-flow", "cifar10-imm", "cifar10-shortcut")
STARTS = {
    "cifar10-student": "teacher",
    "cifar10-cond-student": "teacher",
    "cifar10-scm": "start",
    "cifar10-ect": "start",
    "cifar10-cd": "teacher",
}


def recipe(name, **arguments):
    return find_recipe(name).function(**arguments)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """CIFAR-10's binary batches, of 4 images each."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for i in range(5):
        records = rng.integers(0, 256, (4, cifar10.RECORD), np.uint8)
        records[:, 0] = np.arange(4 * i, 4 * i + 4) % 10
        (folder / f"data_batch_{i + 1}.bin").write_bytes(records.tobytes())
    before = cifar10.COUNTS
    cifar10.COUNTS = {"train": 20, "test": 4}
    yield str(folder)
    cifar10.COUNTS = before


def tiny(run):
    """Two steps of a network of 4 channels."""
    network = dataclasses.replace(run.network.network, channels=4, multipliers=(1, 1), blocks=1)
    return dataclasses.replace(
        run, network=dataclasses.replace(run.network, network=network), images=16, batch_size=8, precision="fp32"
    )


@pytest.fixture(scope="module")
def teachers(cifar, tmp_path_factory):
    """The runs of all recipes that others start from."""
    root = tmp_path_factory.mktemp("runs")
    for name in TEACHERS:
        run = tiny(recipe(name, path=cifar))
        assert train(run, create(root / name, run)).finished
    return root


def default_start(name):
    return Path(inspect.signature(find_recipe(name).function).parameters[STARTS[name]].default).name


def start_of(name, teachers):
    """The arguments of a recipe that starts from another run: the one that it names."""
    return {STARTS[name]: str(teachers / default_start(name))} if name in STARTS else {}


def test_there_are_as_many_as_the_paper_has_rows():
    assert len(NAMES) == 13
    assert all(summary.endswith(".") for name, (_, summary) in recipes().items() if name in NAMES)
    assert {default_start(name) for name in STARTS} == set(TEACHERS)


def test_cifar10_without_labels(cifar):
    with_labels, without = Cifar10(cifar).open(), Cifar10(cifar, labels=False).open()
    assert (without.shape, without.num_classes, without.flip, len(without)) == ((3, 32, 32), None, True, 20)
    batch = without.read(np.arange(20))
    assert batch.cond is None
    assert torch.equal(batch.x_1, with_labels.read(np.arange(20)).x_1)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_papers_or_edms(name, cifar):
    run = recipe(name, path=cifar, seed=3)
    inner = run.network.network
    assert (inner.channels, inner.multipliers, inner.blocks, inner.attention) == (128, (2, 2, 2), 4, (16,))
    assert run.network.sigma_data == 0.5
    assert run.seed == 3
    conditional = name in CONDITIONAL
    assert run.objective.condition == (Labels(10) if conditional else Unconditional())
    assert (inner.num_classes, run.data.labels) == ((10, True) if conditional else (0, False))
    assert inner.auxiliary_time == (name in AUXILIARY)
    assert inner.pixel_norm == ("scm" in name)
    assert inner.weight_head == (name == "cifar10-scm")
    if name in TEACHERS:
        assert (run.batch_size, run.optimizer.lr, run.optimizer.betas) == (512, 1e-3, (0.9, 0.999))
        assert (run.optimizer.warmup_images, inner.dropout, run.images) == (10_000_000, 0.13, 200_000_000)
        assert (run.teacher, run.initial) == (None, None)
        return
    assert (run.batch_size, run.optimizer.lr, run.optimizer.betas) == (128, 1e-4, (0.9, 0.995))  # Table 5
    assert (run.optimizer.weight_decay, inner.dropout, run.ema.sigma_rels[0]) == (0.0, 0.1, 0.2)
    time = getattr(run.objective, "time", None)
    if isinstance(run.objective, FACM):
        assert (time.mean, time.std) == (-1.0, 1.4)
    initial = FromRun(f"runs/{default_start(name)}", sigma_rel=0.05) if name in STARTS else None
    assert run.initial == initial
    distils = name in ("cifar10-student", "cifar10-cond-student", "cifar10-cd")
    assert run.teacher == (initial if distils else None)
    velocity = getattr(run.objective, "velocity", None)
    assert isinstance(velocity, TeacherVelocity if distils else DataVelocity | None)
    assert run.images == (400_000 * 128 if name in STARTS else 200_000_000)


@pytest.mark.parametrize("name", NAMES)
def test_each_passes_the_checks_at_its_full_size(name, cifar):
    check(recipe(name, path=cifar))


@pytest.mark.parametrize("name", SOME_FAST)
def test_each_trains_and_samples(name, cifar, teachers, tmp_path):
    path = teachers / name
    if name not in TEACHERS:
        path = tmp_path / name
        run = tiny(recipe(name, path=cifar, **start_of(name, teachers)))
        assert train(run, create(path, run)).finished
    trained = load_trained(path)
    assert trained.images_seen == 16
    method = Consistency(2)
    if name in TEACHERS or name == "cifar10-shortcut":
        method = Euler(2) if name in TEACHERS else Jumps(2)
    images = sample_balanced(trained.source(torch.device("cpu")), method, 2)
    assert images.shape == (2, 3, 32, 32)
    assert images.isfinite().all()
    assert not torch.equal(images[0], images[1])


def test_a_student_starts_as_its_teacher(cifar, teachers):
    run = tiny(recipe("cifar10-student", path=cifar, **start_of("cifar10-student", teachers)))
    teacher = run.initial.load()
    student = run.network.build()
    student.load_state_dict(teacher.state_dict())  # the same names, whatever its dropout
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([0.3, 1.6])
    assert torch.equal(student.eval()(x, t), teacher(x, t))


def test_a_student_comes_back_from_its_file(cifar, teachers, tmp_path):
    run = tiny(recipe("cifar10-student", path=cifar, **start_of("cifar10-student", teachers)))
    train(run, create(tmp_path / "student", run))
    trained = load_trained(tmp_path / "student")
    export(trained, tmp_path / "student.safetensors")
    found = load_file(tmp_path / "student.safetensors")
    assert found.config == run.network
    assert isinstance(found.interface.condition, Unconditional)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([0.3, 1.6])
    assert torch.equal(found.network(x, t), trained.network(x, t))


@pytest.mark.slow
def test_checkpointing_changes_nothing_under_dropout(cifar, teachers, tmp_path):
    run = tiny(recipe("cifar10-student", path=cifar, **start_of("cifar10-student", teachers)))
    states = []
    for name, engine in (("plain", Engine()), ("checkpointed", Engine(checkpointing=True))):
        train(run, create(tmp_path / name, run), engine=engine)
        states.append(load_trained(tmp_path / name, raw=True).network.state_dict())
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-7)


def test_guidance_is_baked_into_the_conditional_student_alone(cifar):
    assert recipe("cifar10-cond-student", path=cifar, guidance_scale=1.5).objective.velocity.guidance.scale == 1.5
    assert recipe("cifar10-cond-student", path=cifar).objective.velocity.guidance.scale == 1.0


def test_schedules_are_as_long_as_their_runs(cifar):
    assert recipe("cifar10-ict", path=cifar, images=8_000_000).objective.schedule.stage == 1_000_000
    assert recipe("cifar10-ect", path=cifar, images=8_000_000).objective.schedule.stage == 1_000_000
    assert recipe("cifar10-ect", path=cifar, images=5).objective.schedule.stage == 1
    assert recipe("cifar10-cd", path=cifar, images=5).objective.schedule.most_steps == 18


def test_rivals_are_configured_as_their_papers_say(cifar):
    mean_flow, scm = (recipe(f"cifar10-{name}", path=cifar).objective for name in ("mean-flow", "scm"))
    assert mean_flow.data_proportion == 0.75
    assert scm.warmup_images == 10_000 * 128
    assert scm.adaptive
    assert recipe("cifar10-scm-teacher", path=cifar).objective.p_flow_condition == 0.0
    assert recipe("cifar10-teacher", path=cifar).objective.p_flow_condition == 0.5


@dataclasses.dataclass(frozen=True)
class Given:
    """Weights of a network of this configuration, to start from."""

    network: NetworkConfig

    def load(self):
        return self.network.build()


def test_weights_that_were_seen_through_another_adapter_are_no_start(tmp_path, cifar):
    """SimpleEDM and EDM name their weights alike."""
    run = tiny(recipe("cifar10-scratch", path=cifar))
    same = dataclasses.replace(run, initial=Given(run.network))
    assert train(same, create(tmp_path / "same", same)).finished
    normed = dataclasses.replace(run.network, network=dataclasses.replace(run.network.network, pixel_norm=True))
    unlike = dataclasses.replace(run, initial=Given(normed))
    with pytest.raises(ValueError, match="as another function: pixel_norm = True, False here"):
        train(unlike, create(tmp_path / "unlike", unlike))
    others = (EDM(run.network.network), dataclasses.replace(run.network, sigma_data=1.0), run.network.network)
    for k, other in enumerate(others):
        changed = dataclasses.replace(run, initial=Given(other))
        with pytest.raises(ValueError, match="would mean something else"):
            train(changed, create(tmp_path / str(k), changed))

"""The run folder, a run as JSON, and networks out of a folder."""

import dataclasses
import enum
import fcntl
import importlib
import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

import facm
from facm import cli
from facm.cli.lookup import find_recipe, recipes
from facm.core.serialize import fingerprint, from_json, to_json
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.velocity import TeacherVelocity
from facm.networks.lightning_dit import LightningDiT
from facm.networks.mlp import MLP
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.pretrained.trained import FromRun, load_trained
from facm.runs.config import Intervals, Run
from facm.runs.ema import PowerEMA
from facm.runs.environment import environment
from facm.runs.folder import RunFolder, RunFolderError, create, locked, open_run
from facm.runs.optim import AdamW, CosineDecay
from facm.runs.recipe_file import load_module
from facm.training.checks import check
from facm.training.loop import train
from tests.paths import ROOT
from tests.training.run_parts import EVERY, IMAGES, Crash, before_step, crash_at, facm_run, flow_run, trained, weights

EXAMPLE = ROOT / "examples" / "mine.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("finished") / "run", flow_run())


# --- a folder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["run.json", "anything.txt", ".hidden"])
def test_a_folder_in_use_is_refused_and_untouched(tmp_path, content):
    (tmp_path / content).write_text("mine")
    with pytest.raises(RunFolderError, match=f"out = {tmp_path} is in use and is never overwritten"):
        create(tmp_path, flow_run())
    assert [p.name for p in tmp_path.iterdir()] == [content]
    assert (tmp_path / content).read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunFolderError, match="is in use"):
        create(tmp_path / "run", flow_run())


def test_an_empty_folder_is_taken(tmp_path):
    assert open_run(create(tmp_path, flow_run()).path)[1] == flow_run()


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunFolderError, match=f"{path} is not a run folder"):
            open_run(path)


HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path):
    run = flow_run()
    folder = create(tmp_path / "run", run)
    command = [sys.executable, "-S", "-c", HOLD, folder.path / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(RunFolderError, match=f"{folder.path} is in use by another process"):
            train(run, folder)
        assert not folder.checkpoints()
        other.kill()
    assert train(run, folder).finished  # the lock ended with its process


def test_the_lock_is_let_go_after_an_error(tmp_path):
    folder = create(tmp_path / "run", flow_run())
    with pytest.raises(Crash), locked(folder):
        raise Crash
    with (folder.path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["run"].update(seed=5),
        lambda record: record["run"]["optimizer"].update(lr=1e-2),
        lambda record: record["run"]["network"].update(depth=2),
        lambda record: record["run"].update(images=640),
    ],
)
def test_an_edited_run_json_is_refused(finished, tmp_path, edit):
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    record = json.loads((path / "run.json").read_text())
    edit(record)
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunFolderError, match="was changed since the run started: resuming"):
        open_run(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"run": 3, "source": null, "fingerprint": "x"}',
        '{"run": {"type": 3}, "source": null, "fingerprint": "x"}',
        '{"run": {"type": "os:system"}, "source": null, "fingerprint": "x"}',
        '{"run": {"type": "nowhere:Run"}, "source": null, "fingerprint": "x"}',
        '{"run": {"type": "facm.runs.config:Run", "images": -1}, "source": null, "fingerprint": "x"}',
        '{"run": {"type": "facm.runs.config:Every", "log": 5}, "source": null, "fingerprint": "x"}',
        '{"run": null, "source": 5, "fingerprint": "x"}',
        '{"run": null, "source": {}, "fingerprint": "x"}',
    ],
)
def test_a_run_json_that_is_no_run_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"run\.json"):
        open_run(tmp_path)


def test_only_components_are_built_from_a_run_json(tmp_path):
    """run.json names classes; nothing else is ever called."""
    for name in ("os:mkdir", "builtins:print", "subprocess:Popen", "pathlib:Path"):
        with pytest.raises(ValueError, match="refused"):
            from_json({"type": name})


def test_the_environment_is_enough_to_run_it_again(finished):
    record = json.loads((finished.path / "environment.json").read_text())
    assert record["command"]
    assert record["facm"] == facm.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert {"numpy", "safetensors"} <= record["versions"].keys()
    assert record["threads"] == torch.get_num_threads()
    assert record["cores"] >= 1
    assert record["python"].startswith("3.")
    assert record["platform"]
    assert record["device"]


def test_the_environment_holds_commit_and_diff_whatever_bytes_the_diff_has(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "x.txt").write_bytes(b"old\n")
    git("add", "x.txt")
    git("commit", "-m", "x")
    (tmp_path / "x.txt").write_bytes(b"caf\xe9\n")
    monkeypatch.setattr("facm.runs.environment.__file__", str(tmp_path / "record.py"))
    record = environment()["git"]
    assert len(record["commit"]) == 40
    assert "-old" in record["diff"]
    monkeypatch.setattr("facm.runs.environment.__file__", "/record.py")
    assert environment()["git"] is None


def test_ema_snapshots_of_close_lengths_are_kept_apart(tmp_path):
    folder = trained(tmp_path / "run", flow_run(ema=PowerEMA((0.1001, 0.1004, 0.0004))))
    assert {length for _, length, _ in folder.ema_snapshots()} == {0.1001, 0.1004, 0.0004}
    assert len(folder.ema_snapshots()) == 15


# --- a run as JSON ---------------------------------------------------------------------------------------------------


def example_runs():
    module = load_module(EXAMPLE, EXAMPLE.stem)
    return [module.teacher(images=64), module.student(images=64)]


def all_runs():
    made = [find_recipe(name).function() for name in recipes()]
    return [*made, *example_runs(), flow_run(), facm_run("x", optimizer=AdamW(decay=CosineDecay(0.5), clip=np.inf))]


@pytest.mark.parametrize("run", all_runs(), ids=lambda run: type(run.objective).__name__)
def test_a_run_survives_json(run):
    text = json.dumps(to_json(run))
    again = from_json(json.loads(text))
    assert again == run
    assert fingerprint(again) == fingerprint(run)
    assert json.dumps(to_json(again)) == text


def test_every_component_of_the_package_survives_json():
    """Every frozen dataclass that can be made without arguments."""
    seen = 0
    for file in Path(facm.__file__).parent.rglob("*.py"):
        if file.stem in ("cli", "__init__", "__main__"):
            continue
        parts = file.relative_to(Path(facm.__file__).parent).with_suffix("").parts
        module = importlib.import_module(".".join(["facm", *parts]))
        for _, cls in inspect.getmembers(module, dataclasses.is_dataclass):
            plain = all(f.default is not dataclasses.MISSING for f in dataclasses.fields(cls) if f.init)
            if isinstance(cls, type) and cls.__module__ == module.__name__ and plain:
                value = cls()
                assert from_json(json.loads(json.dumps(to_json(value)))) == value
                seen += 1
    assert seen > 15


def test_the_fingerprint_sees_every_change():
    run = facm_run("x")
    changes = [
        {"seed": 1},
        {"images": 640},
        {"network": dataclasses.replace(run.network, depth=2)},
        {"objective": dataclasses.replace(run.objective, clamp=None)},
        {"ema": PowerEMA((0.05,))},
        {"teacher": FromRun("y")},
        {"every": dataclasses.replace(EVERY, keep=3)},
    ]
    prints = {fingerprint(dataclasses.replace(run, **change)) for change in changes} | {fingerprint(run)}
    assert len(prints) == len(changes) + 1


def part(**fields):
    """An instance of a dataclass with these fields, each at its default unless given as (default, value)."""
    declared = [(name, int, field(default=given[0])) for name, given in fields.items()]
    made = dataclasses.make_dataclass("Part", declared, frozen=True)
    return made(**{name: given[-1] for name, given in fields.items()})


def test_a_run_made_before_a_component_got_a_field_is_still_itself():
    before = fingerprint(part(width=(3, 5)))
    assert fingerprint(part(width=(3, 5), depth=(2,))) == before
    assert fingerprint(part(width=(3, 5), depth=(2, 1))) != before
    assert fingerprint((part(width=(3,)),)) == fingerprint((part(width=(3,), depth=(2,)),))  # inside others, too
    # another default in a newer version: what the run was made with is no longer the default, and is seen
    assert fingerprint(part(width=(3, 3))) != fingerprint(part(width=(4, 3)))


@dataclass(frozen=True)
class Silent:
    """A field that takes no part in comparisons still changes the numbers."""

    k: float = field(default=1.0, compare=False)


def test_the_fingerprint_is_of_what_is_recorded():
    assert fingerprint(Silent()) != fingerprint(Silent(50.0))
    assert fingerprint(PowerEMA([0.05, 0.2])) == fingerprint(PowerEMA((0.05, 0.2)))
    assert fingerprint(Holder(items=[])) == fingerprint(Holder())


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Holder:
    value: object = None
    items: tuple = field(default=())


def test_enums_dicts_and_nested_sequences_survive_json():
    value = Holder(Colour.RED, (1, (2.5, "x", None, True), Holder(items=("y",))))
    assert from_json(json.loads(json.dumps(to_json(value)))) == value
    assert from_json(to_json({"a": (1, Holder())})) == {"a": (1, Holder())}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda x: x, "function"),
        (torch.ones(2), "Tensor"),
        (np.ones(2), "ndarray"),
        (np.int64(3), "int64"),
        (torch.nn.Linear(1, 1), "Linear"),
        (Path("x"), "Path"),
        (MLP, "type"),
        ({1, 2}, "set"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_its_type(value, named):
    with pytest.raises(TypeError, match=f"of type (PosixPath|{named}) cannot be recorded"):
        to_json(Holder(value))


def test_a_dict_that_would_come_back_as_something_else_is_refused():
    for value in ({1: 2}, {"type": "facm.runs.config:Run"}):
        with pytest.raises(TypeError, match="cannot be recorded"):
            to_json(Holder(value))


def test_a_component_defined_inside_a_function_is_refused_before_training(tmp_path):
    @dataclass(frozen=True)
    class Local(MLP):
        pass

    with pytest.raises(TypeError, match="Local is defined inside a function"):
        create(tmp_path / "run", flow_run(network=Local(num_classes=3)))
    assert not (tmp_path / "run").exists()


def test_an_impossible_run_names_what_is_wrong():
    for change, message in [
        ({"images": 0}, "images = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"max_nonfinite": 0}, "max_nonfinite = 0"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
    ]:
        with pytest.raises(ValueError, match=message):
            flow_run(**change)
    for name in ("log", "checkpoint", "keep", "ema_snapshots"):
        with pytest.raises(ValueError, match=rf"every\.{name} = -1"):
            Intervals(**{name: -1})
    for change in (
        {"network": "XL/1"},
        {"data": None},
        {"objective": 3},
        {"teacher": "runs/x"},
        {"initial": Path("x")},
    ):
        with pytest.raises(TypeError, match=f"^{next(iter(change))} = "):
            flow_run(**change)


# --- the user's recipe file ------------------------------------------------------------------------------------------

RECIPE = """
from dataclasses import dataclass
from facm import FlowMatching, Labels, Run
from facm.data import Moons
from facm.networks.mlp import MLP
@dataclass(frozen=True)
class Mine:
    width: int = 8
    def build(self):
        return MLP(width=self.width, num_classes=2).build()
def run(images: int = 64) -> Run:
    return Run(Mine(), Moons(n=50), FlowMatching(Labels(2)), images, 16)
"""


@pytest.mark.parametrize(
    "content", [RECIPE, RECIPE.replace("\n", "\r\n"), "\ufeff" + RECIPE], ids=["lf", "crlf", "bom"]
)
def test_a_run_goes_on_without_its_recipe_file(tmp_path, content):
    """From the copy in the folder, which has the same classes."""
    file = tmp_path / "my-recipe.v2.py"
    file.write_bytes(content.encode())
    run = find_recipe(f"{file}:run").function()
    folder = create(tmp_path / "run", run, f"{file}:run", file)
    file.unlink()
    sys.modules.pop(type(run.network).__module__)  # as in a new process
    opened, again = open_run(folder.path)
    assert to_json(again) == to_json(run)
    assert train(again, opened).finished


def test_a_missing_or_changed_recipe_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)
    run = find_recipe(f"{file}:run").function()
    folder = create(tmp_path / "run", run, f"{file}:run", file)
    sys.modules.pop(type(run.network).__module__)
    (folder.path / "recipe.py").write_text(RECIPE.replace("= 8", "= 9"))
    with pytest.raises(RunFolderError, match=r":Mine is no component of this package, and no recipe file"):
        open_run(folder.path)
    (folder.path / "recipe.py").unlink()
    with pytest.raises(RunFolderError, match=r"cannot read the recipe file .*recipe\.py"):
        open_run(folder.path)


# --- what is checked before there is a folder ------------------------------------------------------------------------


@dataclass(frozen=True)
class Empty:
    def open(self):
        return facm.InMemory(np.zeros((0, 2), np.float32), name="Nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": FlowMatching(Labels(1))}, r"expected Labels\(2\)"),
        ({"objective": FlowMatching(facm.Unconditional(), label_dropout=0.0)}, "the batch has conditions"),
        ({"objective": FlowMatching(Labels(2), AuxiliaryTime())}, "auxiliary_time=True"),
        ({"objective": FACM(Labels(2), TeacherVelocity(Guidance(1.0)))}, "teacher = None"),
        ({"seed": -1}, "seed = -1"),
        ({"data": Empty()}, "Nothing is empty"),
    ],
)
def test_parts_that_do_not_fit_are_an_error_before_training(change, message):
    with pytest.raises(ValueError, match=message):
        check(flow_run(**change))


# --- networks out of a folder ----------------------------------------------------------------------------------------


def test_the_default_weights_are_the_first_ema(finished):
    network = load_trained(finished.path)
    assert (network.sigma_rel, network.images_seen, network.which) == (0.05, IMAGES, "EMA 0.05")
    assert (network.config, network.data) == (flow_run().network, flow_run().data)
    assert network.interface.condition == flow_run().objective.condition
    assert not network.network.training
    assert not any(p.requires_grad for p in network.network.parameters())
    raw = load_trained(finished.path, raw=True)
    assert raw.sigma_rel is None
    for name, value in weights(finished).items():
        assert torch.equal(raw.network.state_dict()[name], value)
    assert any(not torch.equal(network.network.state_dict()[name], value) for name, value in weights(finished).items())


def test_another_length_is_synthesised_between_the_tracked_ones(finished):
    def of(sigma_rel):
        return torch.cat([p.flatten() for p in load_trained(finished.path, sigma_rel).network.parameters()])

    short, middle, long = of(0.05), of(0.1), of(0.2)
    assert load_trained(finished.path, 0.1).sigma_rel == 0.1
    assert (middle - short).norm() < (long - short).norm()
    assert (middle - long).norm() < (long - short).norm()


def test_a_length_without_snapshots_or_out_of_range_is_an_error(tmp_path, finished):
    folder = trained(tmp_path / "run", flow_run(every=dataclasses.replace(EVERY, ema_snapshots=0)))
    with pytest.raises(ValueError, match=r"sigma_rel = 0\.1: this run tracks \(0\.05, 0\.2\) and kept no snapshots"):
        load_trained(folder.path, 0.1)
    assert load_trained(folder.path, 0.2).sigma_rel == 0.2
    with pytest.raises(ValueError, match=r"sigma_rel = 0\.5"):
        load_trained(finished.path, 0.5)


def test_raw_weights_of_an_ema_are_a_contradiction(finished):
    with pytest.raises(ValueError, match=r"raw = True with sigma_rel = 0\.05"):
        load_trained(finished.path, 0.05, raw=True)


def test_a_run_without_a_checkpoint_says_how_to_get_one(tmp_path):
    folder = create(tmp_path / "run", flow_run())
    with pytest.raises(FileNotFoundError, match=f"no checkpoint yet: .*facm resume {folder.path}"):
        load_trained(folder.path)


def test_an_unfinished_teacher_is_refused_unless_accepted(tmp_path):
    run = flow_run()
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(160)):
        train(run, folder)
    with pytest.raises(ValueError, match="stopped at 160 of 320 images"):
        FromRun(str(folder.path)).load()
    assert FromRun(str(folder.path), unfinished=True).load() is not None
    train(run, folder)
    assert FromRun(str(folder.path)).load() is not None


DIT = LightningDiT(input_size=8, patch_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=10)


def test_a_student_with_a_second_time_starts_from_a_teacher_without(tmp_path):
    digits = {"data": facm.data.Digits(), "images": 48, "every": Intervals(log=16, checkpoint=48, ema_snapshots=0)}
    teacher = trained(tmp_path / "teacher", flow_run(network=DIT, objective=FlowMatching(Labels(10)), **digits))
    objective = FACM(Labels(10), TeacherVelocity(Guidance(1.0)), AuxiliaryTime())
    network = dataclasses.replace(DIT, auxiliary_time=True)
    folder = trained(tmp_path / "student", facm_run(teacher.path, network=network, objective=objective, **digits))
    assert any(name.startswith("r_embedder") for name in weights(folder))
    deeper = facm_run(teacher.path, network=dataclasses.replace(network, depth=2), objective=objective, **digits)
    with pytest.raises(RuntimeError, match=r"initial = FromRun.*missing: blocks\.1") as error:
        train(deeper, create(tmp_path / "deeper", deeper))
    assert "r_embedder" not in str(error.value)


def test_any_folder_can_be_a_run_and_any_run_a_folder(tmp_path):
    """Names that glob, markup or a shell would take for something else."""
    folder = trained(tmp_path / "[bold] a*b?/[/x] ü", flow_run())
    assert len(folder.checkpoints()) == 2
    assert len(folder.ema_snapshots()) == 10
    cli.main(["show", str(folder.path)])


def test_a_folder_object_needs_no_files(tmp_path):
    folder = RunFolder(tmp_path / "nowhere")
    assert folder.checkpoints() == folder.ema_snapshots() == []


def test_run_is_exported():
    assert facm.Run is Run

"""Components as JSON and back, and their fingerprints."""

import dataclasses
import enum
import hashlib
import importlib
import inspect
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import facm
from facm.cli.lookup import find_recipe, recipes
from facm.core.serialize import find, fingerprint, from_json, is_fingerprint_of, modernised, name_of, to_json, types_in
from facm.flow.conditions import Labels
from facm.networks.mlp import MLP
from facm.objectives.flow_matching import FlowMatching
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals
from facm.runs.ema import PowerEMA
from facm.runs.folder import create
from facm.runs.optim import AdamW, CosineDecay
from facm.runs.recipe_file import load_module
from tests.paths import ROOT
from tests.training.run_parts import EVERY, facm_run, flow_run

EXAMPLE = ROOT / "examples" / "mine.py"


def test_only_components_are_built_from_a_run_json(tmp_path):
    """run.json names classes; nothing else is ever called."""
    for name in ("os:mkdir", "builtins:print", "subprocess:Popen", "pathlib:Path"):
        with pytest.raises(ValueError, match="refused"):
            from_json({"type": name})


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
        (MLP, "_ProtocolMeta"),
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


# --- names of other versions, of the user's own, and of nothing ------------------------------------------------------

OLD_FLOW = {
    "type": "facm.objectives.flow_matching:FlowMatching",
    "condition": {"type": "facm.conditions:Labels", "classes": 3},
    "mixed": 0.3,
}
FLOW = FlowMatching(Labels(3), p_flow_condition=0.3)


def test_names_and_fields_of_the_first_version_are_read():
    assert from_json({"type": "facm.run:Every", "log": 5}) == Intervals(log=5)
    assert from_json(OLD_FLOW) == FLOW
    assert from_json({"type": "facm:FlowMatching", **{k: v for k, v in OLD_FLOW.items() if k != "type"}}) == FLOW


def test_a_component_has_the_fingerprint_that_the_first_version_gave_it():
    then = hashlib.sha256(json.dumps(OLD_FLOW, sort_keys=True).encode()).hexdigest()
    assert then != fingerprint(FLOW)
    assert is_fingerprint_of(then, FLOW)
    assert is_fingerprint_of(fingerprint(FLOW), FLOW)
    assert not is_fingerprint_of(then, dataclasses.replace(FLOW, p_flow_condition=0.4))
    assert not is_fingerprint_of(None, FLOW)


def test_recorded_rows_of_all_versions_compare_by_the_names_of_now():
    now = modernised({"run": [OLD_FLOW, 1, None], "mixed": 0.3})
    condition = {"type": "facm:Labels", "classes": 3}
    flow = {"type": "facm:FlowMatching", "condition": condition, "p_flow_condition": 0.3}
    assert now == {"run": [flow, 1, None], "mixed": 0.3}  # a field of no component keeps its name
    assert modernised(now) == now


def test_the_types_in_recorded_json():
    assert types_in({"run": [OLD_FLOW, {"type": "mine:Own"}], "n": 3}) == {
        "facm:FlowMatching",
        "facm:Labels",
        "mine:Own",
    }
    assert types_in([]) == types_in("facm:FACM") == set()


def test_an_enum_is_recorded_by_its_value_and_changes_the_fingerprint():
    class Size(enum.Enum):
        SMALL = 1

    recorded = to_json(Colour.RED)
    assert recorded == {"type": f"{__name__}:Colour", "value": "red"}
    assert from_json(recorded) is Colour.RED
    assert fingerprint(Holder(Colour.RED)) not in (fingerprint(Holder("red")), fingerprint(Holder()))
    with pytest.raises(ValueError, match="purple"):
        from_json(recorded | {"value": "purple"})
    with pytest.raises(TypeError, match="Size is defined inside a function"):
        to_json(Size.SMALL)


def component(module, name):
    return dataclasses.make_dataclass(name, [], frozen=True, namespace={"__module__": module})


@pytest.fixture
def recipe(monkeypatch):
    """A recipe file that defines a component, imports one, and imports a module of others."""
    module, helper, elsewhere = (ModuleType(name) for name in ("recipe_of_mine", "helper_of_mine", "elsewhere"))
    module.Mine = component("recipe_of_mine", "Mine")
    module.Imported = elsewhere.Imported = component("elsewhere", "Imported")
    helper.Inner = component("helper_of_mine", "Inner")
    module.helper, module.loud = helper, print
    for imported in (helper, elsewhere):
        monkeypatch.setitem(sys.modules, imported.__name__, imported)
    return module


@pytest.mark.parametrize("name", ["recipe_of_mine:Mine", "elsewhere:Imported", "helper_of_mine:Inner"])
def test_a_component_of_the_users_own_is_found_in_the_recipe_file(name, recipe):
    assert find(name, recipe).__name__ == name.partition(":")[2]
    assert type(from_json({"type": name}, recipe)) is find(name, recipe)
    with pytest.raises(ValueError, match=r"is no component of this package, and no recipe file"):
        find(name)


@pytest.mark.parametrize(
    "name", ["recipe_of_mine:Other", "recipe_of_mine:loud", "elsewhere:Mine", "os:system", ":", ""]
)
def test_a_name_that_the_recipe_file_does_not_have_is_refused(name, recipe):
    with pytest.raises(ValueError, match="refused"):
        find(name, recipe)


def test_own_components_are_known_in_the_process_that_recorded_them():
    assert name_of(Holder) == f"{__name__}:Holder"
    assert find(name_of(Holder)) is Holder
    assert name_of(FlowMatching) == "facm:FlowMatching"

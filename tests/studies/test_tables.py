"""What the studies are: the paper's rows and numbers, one run for a name, comparisons that are fair, counted cost."""

import random
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from facm.cli.lookup import STUDIES, find_study, studies
from facm.core.types import Batch, Loss
from facm.data import Cifar10, InMemory
from facm.derivative import Chain, FiniteDifference, NoGraph, OpLevel, WholeNetwork
from facm.flow.conditions import Labels
from facm.flow.distances import L2, L2Cosine, NormL2, Scaled
from facm.flow.guidance import Guidance
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.flow.weighting import Cosine, One, OneMinusPower
from facm.networks.adapters.base import inner_config
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.objectives.mean_flow import MeanFlow
from facm.objectives.scm import SCM
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals
from facm.runs.folder import create
from facm.runs.optim import Constant
from facm.studies.cost import forward_passes
from facm.studies.rows import Bench
from facm.studies.scales import altered, cifar10, digits, find_setting
from facm.studies.study import Entry, check_study
from facm.training.checks import check
from tests.paths import ROOT
from tests.studies.study_parts import Few, Products, bench, pair, setting

HOME = Path("studies/seed-0")
DOCS = ROOT / "docs" / "studies.md"


def made(name, at=None, folder=HOME, seed=0):
    return find_study(name).function(Bench(at or digits(), folder, seed))


def entries(study):
    return {entry.name: entry for entry in study.entries}


def objectives(name):
    return {entry.name: entry.run.objective for entry in made(name).entries}


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_the_package_compares_what_can_be_compared(name):
    study = made(name)
    check_study(study, HOME)
    assert study.title
    assert study.source
    assert study.question.endswith("?")
    assert {entry.run.seed for entry in made(name, seed=7).parts} == {7}
    labels = [entry.label for entry in study.parts]
    assert len(set(labels)) == len(labels)


def test_one_name_is_one_run_in_all_studies():
    runs, used = {}, Counter()
    for name in STUDIES:
        for entry in made(name).parts:
            assert runs.setdefault(entry.name, entry.run) == entry.run, (name, entry.name)
            used[entry.name] += 1
    assert used["teacher"] == len(STUDIES)
    assert used["facm"] == 6
    assert used["plain-cm"] == 3
    assert len(set(map(repr, runs.values()))) == len(runs), "two names for one run would train it twice"


def test_every_run_can_be_trained(tmp_path):
    """Networks and objectives fit; guided ones ask their teacher's folder, so the teachers have one."""
    at = replace(digits(), data=Few(), network=replace(digits().network, depth=1))
    seen = set()
    for name in STUDIES:
        study = made(name, at, tmp_path)
        for entry in study.parts:
            kind = (repr(entry.run.network), repr(entry.run.objective))
            if entry in study.teachers and not (tmp_path / entry.name).exists():
                create(tmp_path / entry.name, entry.run)
            if kind not in seen:
                check(entry.run)
            seen.add(kind)
    assert len(seen) > 25


def test_studies_fit_other_sizes(tmp_path):
    for name in STUDIES:
        check_study(made(name, setting(images=2048, teacher_images=4096), tmp_path), tmp_path)


@pytest.mark.slow
def test_the_size_of_cifar_10_fits_every_study(tmp_path):
    """With its own network and objectives, on noise; its guided rows are left out, for it has no null condition."""
    at = replace(cifar10(), data=Noise(), reference=None)
    seen = set()
    for name in STUDIES:
        study = made(name, at, tmp_path)
        check_study(study, tmp_path)
        for entry in study.parts:
            kind = (repr(entry.run.network), type(entry.run.objective))
            if kind not in seen:
                check(entry.run)
            seen.add(kind)
    assert len(seen) > 10
    assert [name for name in entries(made("collapse", at)) if "w1.75" in name] == []
    assert cifar10("there").data == Cifar10("there", labels=False)
    assert cifar10("there").reference == Cifar10("there")
    assert cifar10().data == Cifar10("data/cifar10", labels=False)


@dataclass(frozen=True)
class Noise:
    def open(self):
        return InMemory(np.zeros((8, 3, 32, 32), np.float32))


def test_students_start_from_the_short_average_of_their_teacher():
    for name in STUDIES:
        study = made(name)
        for entry in study.entries:
            if "scratch" in entry.name:
                assert entry.run.teacher is entry.run.initial is None
            else:
                assert entry.run.teacher == entry.run.initial or name.startswith("order")
                assert entry.run.initial.sigma_rel == 0.05
                assert entry.run.initial.path in {str(HOME / t.name) for t in study.teachers}


def test_teachers_are_measured_at_many_steps_and_students_at_few():
    for name in STUDIES:
        study = made(name)
        assert all(entry.nfe == (1, 2, 32) for entry in study.teachers)
        assert all({1, 2} <= set(entry.nfe) for entry in study.entries)
        assert all(isinstance(entry.run.objective, FlowMatching) for entry in study.teachers)


# --- Table 3 ---------------------------------------------------------------------------------------------------------

TABLE_3 = {
    "facm": 1.76,
    "facm-auxiliary": 1.93,
    "mean-flow": 2.75,
    "scm": 3.04,
    "facm-scratch": 2.27,
    "mean-flow-scratch": 2.65,
}


def test_stability_has_the_rows_of_table_3_with_its_numbers():
    study = made("stability")
    published = {name: entry.published for name, entry in entries(study).items() if entry.published}
    assert published == {name: {1: fid} for name, fid in TABLE_3.items()}
    assert study.source == "Table 3"
    assert list(entries(study)) == [
        "facm",
        "facm-auxiliary",
        "facm-pixel-norm",
        "mean-flow",
        "mean-flow-long",
        "scm",
        "scm-long",
        "scm-without",
        "plain-cm",
        "plain-cm-bare",
        "facm-scratch",
        "mean-flow-scratch",
    ]
    kinds = {name: type(objective) for name, objective in objectives("stability").items()}
    facm = {"facm", "facm-auxiliary", "facm-pixel-norm", "facm-scratch"}
    assert {name for name, kind in kinds.items() if kind is FACM} == facm
    assert {name for name, kind in kinds.items() if kind is MeanFlow} == {
        "mean-flow",
        "mean-flow-long",
        "mean-flow-scratch",
    }
    assert {name for name, kind in kinds.items() if kind is SCM} == {"scm", "scm-long", "scm-without"}


def test_only_what_a_method_needs_is_changed_in_its_network():
    runs = {name: entry.run for name, entry in entries(made("stability")).items()}
    networks = {name: inner_config(run.network) for name, run in runs.items()}
    assert {name for name, network in networks.items() if network.pixel_norm} == {"facm-pixel-norm", "scm", "scm-long"}
    assert {n for n, network in networks.items() if network.weight_head} == {"scm", "scm-long", "scm-without"}
    assert {name for name, network in networks.items() if network.auxiliary_time} == {
        "facm-auxiliary",
        "mean-flow",
        "mean-flow-long",
        "mean-flow-scratch",
    }
    assert isinstance(runs["facm"].objective.task, ExpandedInterval)
    assert isinstance(runs["facm-auxiliary"].objective.task, AuxiliaryTime)
    assert runs["scm"].initial.path == str(HOME / "teacher-pixel-norm")
    assert runs["scm-without"].initial.path == str(HOME / "teacher")
    assert inner_config(made("stability").teachers[1].run.network).pixel_norm
    assert runs["mean-flow-scratch"].objective.data_proportion == 0.75
    for name in ("facm-scratch", "mean-flow-scratch"):
        assert isinstance(runs[name].objective.velocity, DataVelocity)
        assert runs[name].objective.label_dropout == 0.1


def test_the_tangent_of_scm_is_warmed_up_over_a_tenth_of_each_run():
    rows = entries(made("stability"))
    assert {n: rows[n].run.objective.warmup_images for n in ("scm", "scm-long")} == {"scm": 3840, "scm-long": 6144}


def test_what_keeps_the_target_in_bounds_is_off_in_the_bare_row():
    rows = objectives("stability")
    assert (rows["plain-cm"].alpha, rows["plain-cm"].clamp) == (OneMinusPower(0.5), 1.0)
    assert (rows["plain-cm-bare"].alpha, rows["plain-cm-bare"].clamp) == (One(), None)
    assert replace(rows["plain-cm-bare"], alpha=OneMinusPower(0.5), clamp=1.0) == rows["plain-cm"]


def test_the_long_rows_have_the_compute_of_facm(tmp_path):
    study = made("stability", replace(digits(), data=Few()), tmp_path)
    for teacher in study.teachers:
        create(tmp_path / teacher.name, teacher.run)
    rows = entries(study)
    facm, *long = (forward_passes(rows[n].run) * rows[n].run.images for n in ("facm", "mean-flow-long", "scm-long"))
    for other in long:
        assert other == pytest.approx(facm, rel=0.02)
    for name, passes in (("facm", 8), ("mean-flow", 5), ("scm", 5), ("plain-cm", 5)):
        assert forward_passes(rows[name].run) == pytest.approx(passes, rel=0.02)
    assert rows["mean-flow-long"].run.images % rows["facm"].run.batch_size == 0


# --- Table 4, Table 1 ------------------------------------------------------------------------------------------------


def test_weights_has_the_six_rows_of_table_4_with_their_numbers():
    """Sec. 4.3, with two steps."""
    power, cosine = OneMinusPower(0.5), Cosine()
    found = {
        (entry.run.objective.alpha, entry.run.objective.beta): entry.published for entry in made("weights").entries
    }
    assert found == {
        (One(), One()): {2: 1.45},
        (One(), cosine): {2: 1.39},
        (power, One()): {2: 1.42},
        (power, power): {2: 1.37},
        (cosine, cosine): {2: 1.40},
        (power, cosine): {2: 1.32},
    }
    facm = entries(made("weights"))["facm"].run
    for entry in made("weights").entries:
        assert replace(entry.run, objective=facm.objective) == facm
        assert replace(entry.run.objective, alpha=power, beta=cosine) == facm.objective
    assert (FACM(Labels(2), TeacherVelocity()).alpha, FACM(Labels(2), TeacherVelocity()).beta) == (power, cosine)


def test_rivals_has_the_numbers_of_table_1():
    """Unconditional CIFAR-10."""
    found = {name: entry.published for name, entry in entries(made("rivals")).items()}
    assert found == {
        "facm": {1: 2.69, 2: 1.87},
        "mean-flow": {1: 2.92},
        "scm": {1: 2.85, 2: 2.06},
        "cd": {2: 2.93},
        "ict": {1: 2.83},
        "ect": {1: 3.60, 2: 2.11},
        "shortcut": {},
        "imm": {1: 3.20, 2: 1.98},
        "tract": {2: 3.32},
        "ayf": {},
    }
    kinds = objectives("rivals")
    assert isinstance(kinds["cd"].velocity, TeacherVelocity)
    assert all(isinstance(kinds[name].velocity, DataVelocity) for name in ("ict", "ect"))
    assert len({entry.run.images for entry in made("rivals").entries}) == 1


# --- the figures and the ablations -----------------------------------------------------------------------------------


def test_the_collapse_study_differs_in_anchor_guidance_and_bounds_and_in_nothing_else():
    rows = objectives("collapse")
    assert len(rows) == 10
    for suffix, scale in (("", 1.0), ("-w1.75", 1.75)):
        facm, plain, bare, least = (rows[n + suffix] for n in ("facm", "plain-cm", "plain-cm-bare", "plain-cm-l2"))
        assert isinstance(facm, FACM)
        assert all(isinstance(row, ContinuousCM) for row in (plain, bare, least))
        assert {row.velocity for row in (facm, plain, bare, least)} == {TeacherVelocity(Guidance(scale))}
        assert (facm.alpha, facm.beta, facm.clamp) == (plain.alpha, plain.beta, plain.clamp)
        assert plain.clamp == 1.0
        assert bare == replace(plain, alpha=One(), clamp=None)
        assert least == replace(bare, shortcut=L2(), beta=One())
        assert isinstance(plain.shortcut, NormL2)
    assert len(set(rows.values())) == 8
    runs = {name: entry.run for name, entry in entries(made("collapse")).items()}
    slower = replace(runs["facm"].optimizer, lr=runs["facm"].optimizer.lr / 4)
    for name in ("facm", "plain-cm"):
        assert runs.pop(f"{name}-slow") == replace(runs[name], optimizer=slower)
    assert {replace(run, objective=runs["facm"].objective) for run in runs.values()} == {runs["facm"]}


def test_the_anchor_study_varies_weight_and_teacher():
    study = made("anchor")
    points = {(entry.series, entry.x): entry for entry in study.entries if entry.x is not None}
    teachers = {"adapted teacher": "teacher", "ordinary teacher": "teacher-unadapted"}
    assert set(points) == {(series, weight) for series in teachers for weight in (0.1, 1.0, 10.0)}
    for (series, weight), entry in points.items():
        expected = L2Cosine() if weight == 1 else Scaled(L2Cosine(), weight)
        assert entry.run.objective.anchor == expected
        assert entry.run.initial.path == str(HOME / teachers[series])
    without = [entry for entry in study.entries if entry.x is None]
    assert [entry.run.initial.path for entry in without] == [str(HOME / name) for name in teachers.values()]
    assert {entry.run.objective for entry in without} == {objectives("stability")["plain-cm"]}
    assert [teacher.run.objective.p_flow_condition for teacher in study.teachers] == [0.5, 0.0]


def test_the_teacher_study_has_three_lengths_for_each_of_two_methods():
    study = made("teacher")
    images = {entry.name: entry.run.images for entry in study.teachers}
    assert images == {
        "teacher-7936": 7936,
        "teacher-7936-pixel-norm": 7936,
        "teacher-32000": 32000,
        "teacher-32000-pixel-norm": 32000,
        "teacher": 128000,
        "teacher-pixel-norm": 128000,
    }
    for entry in study.entries:
        teacher = Path(entry.run.initial.path).name
        assert images[teacher] == entry.x
        assert teacher.endswith("pixel-norm") == (entry.series == "sCM") == inner_config(entry.run.network).pixel_norm
    assert [entry.series for entry in study.entries] == ["FACM", "sCM"] * 3
    assert study.free == ("teacher",)


def test_duration_is_measured_as_it_goes_at_a_constant_learning_rate():
    """Twice as long as other students, and otherwise as they are."""
    rows, usual = entries(made("duration")), entries(made("stability"))
    assert list(rows) == ["facm-duration", "mean-flow-duration", "scm-duration"]
    for name, entry in rows.items():
        assert entry.run.images == 2 * 38_400
        assert entry.at == tuple(range(12_800, 76_800, 12_800))
        assert entry.nfe == (1, 2, 4)
        other = usual[name.removesuffix("-duration")].run
        assert entry.run.optimizer == replace(other.optimizer, decay=Constant())
        same = {"images": 76_800, "optimizer": entry.run.optimizer, "objective": entry.run.objective}
        assert entry.run == replace(other, **same)
        warmed = {"warmup_images": 7_680} if name == "scm-duration" else {}
        assert entry.run.objective == replace(other.objective, **warmed)
    assert len({entry.series for entry in rows.values()}) == 3


def test_duration_keeps_the_snapshots_that_it_measures_whatever_the_size_keeps():
    for entry in made("duration", replace(digits(), every=Intervals(ema_snapshots=0))).entries:
        assert entry.run.every.ema_snapshots == 12_800
        assert entry.at == tuple(range(12_800, 76_800, 12_800))


ARMS = ["facm", "facm-auxiliary", "facm-pixel-norm", "mean-flow", "scm", "scm-without", "plain-cm"]


def test_order_gives_all_arms_the_compute_of_facm_and_one_teachers_velocities():
    rows, usual = entries(made("order")), entries(made("stability"))
    assert list(rows) == [f"order-{arm}-{budget}x" for budget in (1, 4, 16) for arm in ARMS]
    for budget in (1, 4, 16):
        for arm in ARMS:
            entry = rows[f"order-{arm}-{budget}x"]
            images = budget * (38_400 if arm.startswith("facm") else 61_440)  # 8 and 5 forward passes an image
            assert entry.run.images == images
            assert entry.at == (images // 4, images // 2, images // 4 * 3)
            assert entry.against == f"order-facm-{budget}x"
            other = usual[arm].run
            warmed = {"warmup_images": images // 10} if arm.startswith("scm") else {}
            same = {
                "images": images,
                "objective": replace(other.objective, **warmed) if warmed else other.objective,
                "teacher": FromRun(str(HOME / "teacher"), sigma_rel=0.05),
                "every": replace(other.every, ema_snapshots=images // 4),
            }
            assert entry.run == replace(other, **same)  # and with it where it starts from
    assert made("order").pixels


def test_order_is_of_the_budgets_that_it_is_given():
    study = find_study("order").function(Bench(digits(), HOME, 0), (4,))
    assert [entry.name for entry in study.entries] == [f"order-{arm}-4x" for arm in ARMS]
    for budgets in ((), (0,), (1, 1)):
        with pytest.raises(ValueError, match=r"budgets = \(.*\), expected different whole multiples"):
            find_study("order").function(Bench(digits(), HOME, 0), budgets)


def test_order_trains_the_teacher_with_pixel_norm_only_for_those_who_start_from_it():
    function = find_study("order").function
    for arms, teachers in {
        ("facm", "mean-flow"): ["teacher"],
        ("facm", "scm"): ["teacher", "teacher-pixel-norm"],
        ("facm", "facm-pixel-norm"): ["teacher", "teacher-pixel-norm"],
    }.items():
        study = function(Bench(digits(), HOME, 0), (1,), arms)
        assert [entry.name for entry in study.teachers] == teachers


def test_order_may_have_other_arms():
    function = find_study("order").function
    rows = entries(function(Bench(digits(), HOME, 0), (4,), ("facm", "tract", "ayf")))
    tract, ayf = rows["order-tract-4x"].run, rows["order-ayf-4x"].run
    assert tract.images == ayf.images == 4 * 61_440  # teacher 1, self-teacher 1, student 3; teacher 1, tangent 4
    assert (tract.objective.steps, tract.objective.groups) == (32, 1)
    assert ayf.objective.warmup_images == 24_576
    assert inner_config(ayf.network).auxiliary_time
    for arms in (("tract",), ("facm", "facm"), ("facm", "dmd"), ()):
        with pytest.raises(ValueError, match=r"arms = \(.*\), expected 'facm' and others of facm, .*tract, ayf, each"):
            function(Bench(digits(), HOME, 0), (1,), arms)


def test_rows_are_compared_with_a_row_that_there_is(study):
    lost = replace(study, entries=(study.entries[0], replace(study.entries[1], against="absent")))
    with pytest.raises(ValueError, match=r"study 'Pair' compares with \['absent'\]: expected names of its entries"):
        check_study(lost, HOME)
    uneven = replace(study, pixels=True, entries=(replace(study.entries[0], at=(32,)), study.entries[1]))
    with pytest.raises(ValueError, match="shows the course of its runs: expected as many clocks of each"):
        check_study(uneven, HOME)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["digits", "fashion"])
def test_the_arms_of_order_cost_what_facm_does(tmp_path, at):
    """Counted at both sizes: within 3 % of each other."""
    size = find_setting(at)
    size = replace(size, data=Few()) if at == "digits" else replace(size, data=Blank28())
    study = find_study("order").function(Bench(size, tmp_path, 0), (1,), (*ARMS, "tract", "ayf"))
    for teacher in study.teachers:
        create(tmp_path / teacher.name, teacher.run)
    costs = [forward_passes(entry.run) * entry.run.images for entry in study.entries]
    assert max(costs) < 1.03 * min(costs)


@dataclass(frozen=True)
class Blank28:
    def open(self):
        return InMemory(np.zeros((8, 1, 28, 28), np.float32), np.arange(8), num_classes=10)


def test_strategies_differ_in_the_derivative_alone():
    rows = objectives("strategies")
    assert {name: row.derivative for name, row in rows.items()} == {
        "facm-op-level": OpLevel(),
        "facm-whole": WholeNetwork(),
        "facm-no-graph": NoGraph(),
        "facm-chain": Chain(),
        "facm-finite-difference": FiniteDifference(),
    }
    assert {replace(row, derivative=OpLevel()) for row in rows.values()} == {objectives("stability")["facm"]}
    assert {entry.run.images for entry in made("strategies").entries} == {12_800}


# --- settings, finding -----------------------------------------------------------------------------------------------


def test_a_size_that_there_is_not_is_named():
    assert find_setting("digits") == digits()
    assert find_setting("cifar10", "there") == cifar10("there")
    with pytest.raises(ValueError, match="name = 'digit', expected one of digits, fashion, cifar10"):
        find_setting("digit")
    with pytest.raises(ValueError, match="data = 'there' with digits, which come with scikit-learn; expected None"):
        find_setting("digits", "there")


def test_a_network_without_a_setting_that_a_study_needs_is_named():
    with pytest.raises(ValueError, match=r"network = Products\(.* has no pixel_norm, which this study needs"):
        setting(network=Products()).altered(pixel_norm=True)


def test_settings_are_changed_inside_adapters():
    @dataclass(frozen=True)
    class Around:
        network: object

    assert altered(Around(Around(Products())), depth=2) == Around(Around(Products(2)))


def test_every_study_says_what_it_is():
    said = studies()
    assert tuple(said) == STUDIES
    assert said["weights"] == "Table 4: the weighting functions alpha(t) and beta(t) of the shortcut loss."
    assert all(line.endswith(".") for line in said.values())
    assert {find_study(name).function.__name__ for name in STUDIES} == set(STUDIES)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "stabilty",
            r"unknown study 'stabilty': did you mean stability\? expected one of stability, weights, .*rivals",
        ),
        ("xyz", r"unknown study 'xyz': expected one of stability, .*or a function in a file, mine.py:study"),
        ("absent.py:study", r"study 'absent.py:study': there is no file absent.py"),
    ],
)
def test_a_study_that_there_is_not_is_named_with_what_there_is(spec, said):
    with pytest.raises(ValueError, match=said):
        find_study(spec)


def test_a_function_of_a_file_is_found_and_another_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from facm.studies.tables.weights import weights\ndef a(bench): ...\ndef b(bench): ...\ndef _c(bench): ...\n"
    )
    assert find_study(f"{file}:b").name == "b"
    for spec in (f"{file}:c", f"{file}", f"{file}:_c", f"{file}:weights"):
        with pytest.raises(ValueError, match=r"expected .*mine.py:FUNCTION, with one of a, b$"):
            find_study(spec)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="with one of its functions"):
        find_study(f"{tmp_path / 'empty.py'}:x")


@pytest.mark.skipif(not DOCS.exists(), reason="a copy of the tests without the documentation")
def test_the_example_in_the_documentation_is_a_study(tmp_path):
    text = DOCS.read_text()
    (tmp_path / "mine.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    study, quick = (made(f"{tmp_path / 'mine.py'}:{name}") for name in ("times", "quick"))
    check_study(study, HOME)
    check_study(quick, HOME)
    assert {entry.run.images for entry in quick.entries} == {1280}
    assert [entry.run.objective.time.mean for entry in study.entries] == [-1.6, -0.8, 0.0]
    for name in STUDIES:
        assert f"| `{name}` |" in text


# --- check_study -----------------------------------------------------------------------------------------------------


@pytest.fixture
def study():
    return pair(bench(HOME.parent))


def changed(study, index=1, **changes):
    """The study with one entry's run changed."""
    rows = list(study.entries)
    rows[index] = replace(rows[index], run=replace(rows[index].run, **changes))
    return replace(study, entries=tuple(rows))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data": Few(100)},
            r"'facm' has data = Few\(n=200\), 'plain-cm' has Few\(n=100\): rows that disagree in data",
        ),
        ({"seed": 3}, "'facm' has seed = 0, 'plain-cm' has 3: rows that disagree in seed cannot be compared$"),
        ({"batch_size": 8}, "'facm' has batch_size = 16, 'plain-cm' has 8: rows that disagree in batch_size"),
        (
            {"images": 96},
            r"'facm' has images = 64, 'plain-cm' has 96: rows that disagree in images cannot be compared, unless the "
            r'study says free = \("budget",\)',
        ),
    ],
)
def test_rows_that_disagree_are_named(study, changes, said):
    check_study(study, HOME)
    with pytest.raises(ValueError, match=f"study 'Pair': {said}"):
        check_study(changed(study, **changes), HOME)


def test_a_study_of_budgets_may_have_several(study):
    check_study(replace(changed(study, images=96), free=("budget",)), HOME)
    for changes in ({"seed": 3}, {"data": Few(100)}, {"batch_size": 8}):
        with pytest.raises(ValueError, match="cannot be compared"):
            check_study(replace(changed(study, **changes), free=("budget", "teacher")), HOME)


def with_teacher(study, teacher, path=None):
    source = FromRun(path or str(HOME / teacher.name), sigma_rel=0.05)
    return changed(replace(study, teachers=(*study.teachers, teacher)), teacher=source, initial=source)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"objective": FlowMatching(Labels(10), p_flow_condition=0.0)}, "objective"),
        ({"images": 32}, "images"),
        ({"seed": 4}, "seed"),
        ({"batch_size": 8, "images": 32}, "images, batch_size"),
    ],
)
def test_rows_with_unequal_teachers_are_named_unless_the_teacher_is_studied(study, changes, what):
    teacher = replace(study.teachers[0], name="other", run=replace(study.teachers[0].run, **changes))
    unequal = with_teacher(study, teacher)
    with pytest.raises(
        ValueError, match=rf"the teachers of 'facm' and 'plain-cm' differ in {what}: .*\(\"teacher\",\)"
    ):
        check_study(unequal, HOME)
    check_study(replace(unequal, free=("teacher",)), HOME)


def test_a_teacher_may_differ_in_its_network(study):
    run = replace(study.teachers[0].run, network=setting().altered(pixel_norm=True))
    check_study(with_teacher(study, replace(study.teachers[0], name="other", run=run)), HOME)


def test_a_teacher_that_is_nowhere_is_named(study, tmp_path):
    source = FromRun(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=rf"'plain-cm' is .*absent, expected one of the study's \({HOME}/teacher\)"):
        check_study(changed(study, teacher=source), HOME)
    with pytest.raises(ValueError, match=r"the teacher of 'facm' is .*expected one of the study's \(none\) or a run"):
        check_study(replace(study, teachers=()), HOME)


def test_a_teacher_may_be_a_run_of_the_users_own(study, tmp_path):
    create(tmp_path / "own", study.teachers[0].run)
    source = FromRun(str(tmp_path / "own"))
    check_study(changed(study, teacher=source), HOME)
    create(tmp_path / "short", replace(study.teachers[0].run, images=32))
    with pytest.raises(ValueError, match="differ in images"):
        check_study(changed(study, teacher=FromRun(str(tmp_path / "short"))), HOME)


def test_a_teacher_of_other_data_is_named_even_where_the_teacher_is_studied(study):
    teacher = replace(study.teachers[0], name="other", run=replace(study.teachers[0].run, data=Few(100)))
    said = r"'plain-cm' has data = Few\(n=200\), its teacher .*other was trained on Few\(n=100\): expected the same"
    with pytest.raises(ValueError, match=said):
        check_study(replace(with_teacher(study, teacher), free=("teacher",)), HOME)


def test_names_are_there_once_and_entries_at_all(study):
    with pytest.raises(ValueError, match=r"two entries named \['facm'\]: expected one run for a name"):
        check_study(replace(study, entries=(*study.entries, study.entries[0])), HOME)
    with pytest.raises(ValueError, match=r"two entries named \['teacher'\]"):
        check_study(replace(study, entries=(replace(study.entries[0], name="teacher"),)), HOME)
    with pytest.raises(ValueError, match="study 'Pair' has no entries, expected at least one network to train"):
        check_study(replace(study, entries=()), HOME)


def test_rows_are_measured_where_weights_are_kept(study):
    def at(*clocks, **changes):
        return replace(study, entries=(replace(changed(study, 0, **changes).entries[0], at=clocks),))

    check_study(at(32, 64), HOME)
    with pytest.raises(
        ValueError, match=r"'facm' is measured at images = 16, 48, where .* = 32, expected clocks among 32, 64"
    ):
        check_study(at(48, 32, 16), HOME)
    with pytest.raises(ValueError, match=r"every.ema_snapshots = 0, expected clocks among none"):
        check_study(at(32, every=Intervals(ema_snapshots=0)), HOME)
    check_study(at(32, 48, 64, every=Intervals(ema_snapshots=20)), HOME)  # the first steps that reach 20, 40, 60
    with pytest.raises(ValueError, match="= 20, expected clocks among 32, 48, 64"):
        check_study(at(20, every=Intervals(ema_snapshots=20)), HOME)


# --- cost ------------------------------------------------------------------------------------------------------------

DEPTH = 4
FIRST = 1 / DEPTH  # the input of the first layer needs no gradient


def student(home, objective, **network):
    made = bench(home, network=Products(DEPTH))
    if not (made.folder / "teacher").exists():
        create(made.folder / "teacher", made.teacher().run)
    return made.distilled("x", "x", objective, **network).run


UNGUIDED = TeacherVelocity(Guidance(1.0))


@pytest.mark.parametrize(
    ("objective", "passes"),
    [
        (FACM(Labels(10), UNGUIDED), 8 - 2 * FIRST),  # teacher 1; value and backward 3; with the tangent 4
        (FACM(Labels(10), TeacherVelocity(Guidance(1.75))), 9 - 2 * FIRST),
        (FACM(Labels(10), DataVelocity()), 7 - 2 * FIRST),
        (FACM(Labels(10), UNGUIDED, derivative=WholeNetwork()), 9 - 2 * FIRST),
        (FACM(Labels(10), UNGUIDED, derivative=FiniteDifference()), 9 - 2 * FIRST),
        (ContinuousCM(Labels(10), UNGUIDED), 5 - FIRST),
    ],
)
def test_forward_passes_are_counted_exactly(tmp_path, objective, passes):
    assert forward_passes(student(tmp_path, objective)) == pytest.approx(passes, rel=1e-12)


def test_mean_flow_costs_five(tmp_path):
    run = student(tmp_path, MeanFlow(Labels(10), UNGUIDED), auxiliary_time=True)
    assert forward_passes(run) == pytest.approx(5 - FIRST, rel=1e-12)


def test_flow_matching_costs_three_and_depth_shows(tmp_path):
    assert forward_passes(bench(tmp_path, network=Products(DEPTH)).teacher().run) == 3 - FIRST
    assert forward_passes(bench(tmp_path, network=Products(1)).teacher().run) == 2


def test_counting_is_repeatable_and_leaves_the_generators_alone(tmp_path):
    made = bench(tmp_path)
    create(made.folder / "teacher", made.teacher().run)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    first = forward_passes(made.facm().run)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1][1])
    assert random.getstate() == before[2]
    torch.manual_seed(5)
    assert forward_passes(made.facm().run) == first
    assert first == pytest.approx(8, rel=0.05)  # attention, embeddings and all


@dataclass(frozen=True)
class Later:
    """Twice the work from half of the run on."""

    half: int
    twice: bool = False
    condition: Labels = Labels(10)

    def at(self, images: int) -> "Later":
        return replace(self, twice=images >= self.half)

    def __call__(self, network, batch: Batch, rng: torch.Generator, teacher=None) -> Loss:
        flow = FlowMatching(self.condition)
        losses = [flow(network, batch, rng, teacher) for _ in range(1 + self.twice)]
        return Loss(sum(loss.total for loss in losses), {})


def test_a_schedule_is_counted_at_half_of_the_run(tmp_path):
    run = bench(tmp_path, network=Products(1)).teacher().run
    assert forward_passes(replace(run, objective=Later(48))) == 4
    assert forward_passes(replace(run, objective=Later(49))) == 2


def test_a_teacher_that_is_no_run_folder_is_loaded(tmp_path):
    run = student(tmp_path, FACM(Labels(10), UNGUIDED))
    assert forward_passes(replace(run, teacher=Made())) == 8 - 2 * FIRST


@dataclass(frozen=True)
class Made:
    def load(self):
        return Products(DEPTH).build()


def test_an_entry_has_its_defaults():
    entry = Entry("x", "x", bench(HOME).teacher().run)
    assert (entry.nfe, entry.at, entry.published) == ((1, 2), (), {})

"""A study's networks: trained and measured once, whatever interrupts them, one after the other or side by side."""

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from facm.evaluation.features import NonFiniteSamplesError, check_samples
from facm.flow.conditions import Labels
from facm.runs import log as logs
from facm.runs.folder import RunFolderError, open_run
from facm.sampling.methods import Consistency, Euler, Jumps
from facm.studies import schedule, train_and_measure
from facm.studies.schedule import Children, Plan, in_turn, side_by_side
from facm.studies.train_and_measure import Wanted, finished, fulfil, measured, stopped, trained_whole, wanted
from tests.studies.study_parts import N, an_evaluator, bench, pair, row, stop, written
from tests.training.run_parts import Crash, FailsAt, before_step, contents, crash_at, signal_at

FEATURES = "quarters"


def never(images):
    pytest.fail("it trains again")


@pytest.fixture(scope="module")
def evaluator():
    return an_evaluator()


@pytest.fixture(scope="module")
def home(tmp_path_factory, evaluator):
    """A finished study of two seeds; tests that change something do so in a copy of one network."""
    home = tmp_path_factory.mktemp("study")
    assert in_turn(plan_of(home, 0, 1), evaluator)
    return home


def plan_of(home, *seeds):
    return Plan(home, {seed: pair(bench(home, seed)) for seed in seeds}, N)


def entry_of(home, name="facm"):
    return plan_of(home, 0).tasks[f"0/{name}"]


@pytest.fixture
def copy(home, tmp_path):
    """A copy of the student's folder and its rows."""
    shutil.copytree(home / "seed-0" / "facm", tmp_path / "facm")
    return tmp_path / "facm"


def touched(path):
    return {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.name not in (".lock",)}


# --- one network -----------------------------------------------------------------------------------------------------


def test_a_network_is_measured_as_it_was_trained():
    made = bench(Path("x"))
    assert [w.method for w in wanted(made.teacher())] == [Euler(1), Euler(2), Euler(4)]
    assert list(wanted(made.facm())) == [Wanted(Consistency(1), 1, None), Wanted(Consistency(2), 2, None)]
    assert [w.method for w in wanted(made.mean_flow())] == [Consistency(1), Consistency(2)]
    from facm.studies.tables.rivals import rivals

    imm = {entry.name: entry for entry in rivals(made).entries}["imm"]
    assert {type(w.method) for w in wanted(imm)} <= {Consistency, Jumps}
    late = replace(made.facm(), at=(32, 48))
    assert [(w.images, w.nfe) for w in wanted(late)] == [(None, 1), (None, 2), (32, 1), (32, 2), (48, 1), (48, 2)]


def test_a_study_trains_and_measures_all(home):
    for seed in (0, 1):
        for name, sampler, nfe, images in (
            ("teacher", "euler", [1, 2, 4], 96),
            ("facm", "consistency", [1, 2], 64),
            ("plain-cm", "consistency", [1, 2], 64),
        ):
            folder, run = open_run(home / f"seed-{seed}" / name)
            rows = logs.read(folder.evaluations)
            assert [(r["nfe"], r["sampler"], r["images"], r["n"]) for r in rows] == [
                (steps, sampler, images, N) for steps in nfe
            ]
            assert {(r["seed"], r["ema"], r["features"]) for r in rows} == {(1, 0.05, FEATURES)}
            assert run.seed == seed
            assert trained_whole(folder.path)
    first, second = (logs.read(home / f"seed-{seed}/facm/evaluations.jsonl") for seed in (0, 1))
    assert first[0]["frechet_distance"] != second[0]["frechet_distance"]


def test_what_is_done_is_not_done_again(home, evaluator):
    before = touched(home)
    plan = plan_of(home, 0, 1)
    assert all(plan.done(task, evaluator) for task in plan.tasks)
    with before_step(never):
        assert in_turn(plan, evaluator)
        assert fulfil(entry_of(home), plan.path("0/facm"), evaluator, N).finished
    assert touched(home) == before


def test_only_what_is_missing_is_measured_again(home, copy, evaluator):
    file = copy / "evaluations.jsonl"
    one, two = logs.read(file)
    file.write_text("")
    logs.append(file, two)
    entry = entry_of(home)
    assert not finished(entry, copy, N, FEATURES)
    checkpoints = touched(copy / "checkpoints")
    with before_step(never):
        assert fulfil(entry, copy, evaluator, N).finished
    assert finished(entry, copy, N, FEATURES)
    assert touched(copy / "checkpoints") == checkpoints
    again = logs.read(file)
    assert [r["nfe"] for r in again] == [2, 1]
    assert again[1]["frechet_distance"] == one["frechet_distance"]


def test_another_number_of_samples_is_another_number(home, copy, evaluator):
    entry = entry_of(home)
    assert not finished(entry, copy, N + 1, FEATURES)
    assert not finished(entry, copy, N, "others")
    fulfil(entry, copy, evaluator, N + 1)
    assert [r["n"] for r in logs.read(copy / "evaluations.jsonl")] == [N, N, N + 1, N + 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.2},
        {"ema": None},
        {"guidance": {"type": "facm.flow.guidance:Guidance", "scale": 2.0}},
        {"method": {"type": "facm.sampling.generate:Consistency", "nfe": 1, "shift": 3.0, "times": None}},
        {"images": 48},
        {"n": N - 1},
        {"seed": 0},
        {"features": "others"},
    ],
)
def test_a_row_that_was_measured_in_another_way_is_not_the_studys(tmp_path, changes):
    entry = bench(tmp_path).facm()
    written(tmp_path / "run", entry, {1: 2.0})
    want = next(iter(wanted(entry)))
    logs.append(tmp_path / "run" / "evaluations.jsonl", row(entry, want, 9.0, **changes))
    assert measured(tmp_path / "run", want, entry.run, N, FEATURES)["frechet_distance"] == 2.0
    logs.append(tmp_path / "run" / "evaluations.jsonl", row(entry, want, 3.0))
    assert measured(tmp_path / "run", want, entry.run, N, FEATURES)["frechet_distance"] == 3.0, "the newest"
    assert measured(tmp_path / "run", Wanted(Consistency(2), 2, None), entry.run, N, FEATURES) is None


def test_an_interrupted_network_goes_on_to_the_same_weights(home, tmp_path, evaluator):
    entry = entry_of(home)
    with before_step(signal_at(0, signal.SIGTERM)):
        outcome = fulfil(entry, tmp_path / "facm", evaluator, N)
    assert not outcome.finished
    assert not trained_whole(tmp_path / "facm")
    assert not (tmp_path / "facm" / "evaluations.jsonl").exists()
    assert not finished(entry, tmp_path / "facm", N, FEATURES)
    assert fulfil(entry, tmp_path / "facm", evaluator, N).finished
    whole, resumed = (open_run(path)[0] for path in (home / "seed-0" / "facm", tmp_path / "facm"))
    assert contents(resumed) == contents(whole)
    distances = [[r["frechet_distance"] for r in logs.read(folder.evaluations)] for folder in (whole, resumed)]
    assert distances[0] == distances[1]


def test_a_crash_leaves_what_the_next_call_goes_on_from(home, tmp_path, evaluator):
    entry = entry_of(home)
    with pytest.raises(Crash), before_step(crash_at(48)):
        fulfil(entry, tmp_path / "facm", evaluator, N)
    seen = []
    with before_step(seen.append):
        fulfil(entry, tmp_path / "facm", evaluator, N)
    assert seen == [32, 48]


def test_earlier_clocks_are_measured_with_the_weights_of_then(home, tmp_path, evaluator):
    entry = replace(entry_of(home), at=(32,))
    fulfil(entry, tmp_path / "facm", evaluator, N)
    rows = {(r["nfe"], r["images"]): r for r in logs.read(tmp_path / "facm" / "evaluations.jsonl")}
    assert list(rows) == [(1, 64), (2, 64), (1, 32), (2, 32)]
    assert rows[1, 32]["weights"] == "EMA 0.05 at 32 images"
    assert rows[1, 64]["weights"] == "EMA 0.05"
    assert rows[1, 32]["frechet_distance"] != rows[1, 64]["frechet_distance"]
    ended = logs.read(home / "seed-0" / "facm" / "evaluations.jsonl")
    assert rows[1, 64]["frechet_distance"] == ended[0]["frechet_distance"]
    assert finished(entry, tmp_path / "facm", N, FEATURES)
    with before_step(never):
        fulfil(entry, tmp_path / "facm", evaluator, N)
    assert len(logs.read(tmp_path / "facm" / "evaluations.jsonl")) == 4


def collapsing(home):
    entry = bench(home).facm_scratch()
    run = replace(entry.run, objective=FailsAt((32, 48), condition=Labels(10)), max_nonfinite=2)
    return replace(entry, run=run)


def test_a_network_that_collapses_is_written_down_never_measured_and_never_tried_again(tmp_path, evaluator):
    entry, path = collapsing(tmp_path), tmp_path / "seed-0" / "facm-scratch"
    assert fulfil(entry, path, evaluator, N).finished
    failed = stopped(path)
    assert failed["images"] == 48
    assert "2 steps in a row" in failed["error"]
    assert not (path / "evaluations.jsonl").exists()
    assert not trained_whole(path)
    assert finished(entry, path, N, FEATURES)
    before = touched(path)
    with before_step(never):
        assert fulfil(entry, path, evaluator, N).finished
    assert touched(path) == before


def test_a_network_that_collapses_at_once_did_so_after_no_images(tmp_path, evaluator):
    entry = collapsing(tmp_path)
    run = replace(entry.run, objective=FailsAt((0,), condition=Labels(10)), max_nonfinite=1)
    fulfil(replace(entry, run=run), tmp_path / "run", evaluator, N)
    assert stopped(tmp_path / "run")["images"] == 0


def test_a_network_with_samples_that_are_no_numbers_has_collapsed(home, copy, evaluator, monkeypatch):
    def samples(*arguments, **options):
        raise NonFiniteSamplesError("60 of 60 generated samples are not finite")

    monkeypatch.setattr(train_and_measure, "evaluate", samples)
    entry, path = entry_of(home), copy
    (path / "evaluations.jsonl").unlink()
    assert fulfil(entry, path, evaluator, N).finished
    assert stopped(path) == {"error": "60 of 60 generated samples are not finite", "images": entry.run.images}


def test_samples_that_are_no_numbers_are_an_error_of_their_own(evaluator):
    x = torch.full((2, *evaluator.dataset.shape), torch.nan)
    with pytest.raises(NonFiniteSamplesError, match="2 of 2 generated samples are not finite"):
        check_samples("generated", x, tuple(evaluator.dataset.shape))


def test_a_folder_with_another_run_is_refused(home, copy, evaluator):
    other = entry_of(home, "plain-cm")
    for act in (lambda: finished(other, copy, N, FEATURES), lambda: fulfil(other, copy, evaluator, N)):
        with pytest.raises(RunFolderError, match=r"facm holds another run than this command's \(objective differ\)"):
            act()


def test_a_run_that_cannot_work_leaves_no_folder(home, tmp_path, evaluator):
    entry = entry_of(home)
    broken = replace(entry, run=replace(entry.run, teacher=None))
    with pytest.raises(ValueError, match="teacher = None"):
        fulfil(broken, tmp_path / "broken", evaluator, N)
    assert not (tmp_path / "broken").exists()


# --- all of them, in turn --------------------------------------------------------------------------------------------


def test_teachers_come_first(tmp_path, monkeypatch, evaluator):
    plan, order = plan_of(tmp_path, 0, 3), []
    assert list(plan.tasks) == ["0/teacher", "3/teacher", "0/facm", "0/plain-cm", "3/facm", "3/plain-cm"]
    assert plan.path("3/facm") == tmp_path / "seed-3" / "facm"
    monkeypatch.setattr(Plan, "done", lambda self, task, evaluator: task == "0/facm")
    monkeypatch.setattr(Plan, "do", lambda self, task, evaluator: order.append(task) or task != "0/plain-cm")
    assert not in_turn(plan, evaluator), "interrupted in 0/plain-cm"
    assert order == ["0/teacher", "3/teacher", "0/plain-cm"]


@pytest.mark.slow
def test_one_task_says_what_came_out(home, tmp_path, evaluator, capsys):
    assert plan_of(home, 0).do("0/facm", evaluator)
    one, two = (r["frechet_distance"] for r in logs.read(home / "seed-0/facm/evaluations.jsonl"))
    assert f"seed 0/facm: 1 step: {one:.3f}, 2 steps: {two:.3f} (" in capsys.readouterr().out
    plan = Plan(tmp_path, {0: replace(pair(bench(tmp_path)), entries=(collapsing(tmp_path),))}, N)
    assert plan.do("0/facm-scratch", evaluator)
    assert "seed 0/facm-scratch: collapsed after 48 images" in capsys.readouterr().out
    with before_step(signal_at(16, signal.SIGTERM)):
        assert not plan_of(tmp_path, 0).do("0/teacher", evaluator)
    assert capsys.readouterr().out == "seed 0/teacher: training begins or goes on, 96 images\n"


def test_a_task_that_there_is_not_is_named(home, evaluator):
    with pytest.raises(ValueError, match="task = '0/fam', expected SEED/NAME, one of 0/teacher, 0/facm, 0/plain-cm"):
        plan_of(home, 0).do("0/fam", evaluator)


def test_a_task_whose_teacher_is_not_there_is_refused(tmp_path, evaluator):
    plan = plan_of(tmp_path, 0)
    assert plan.ready("0/teacher")
    assert not plan.ready("0/facm")
    said = rf"cannot train 0/facm: its teacher {tmp_path}/seed-0/teacher is not trained to its end yet"
    with pytest.raises(ValueError, match=said):
        plan.do("0/facm", evaluator)
    with before_step(signal_at(32, signal.SIGTERM)):
        assert not in_turn(plan, evaluator)
    assert not plan.ready("0/facm")
    assert not (tmp_path / "seed-0" / "facm").exists()


def test_a_teacher_that_collapsed_ends_the_study(tmp_path, evaluator):
    plan = plan_of(tmp_path, 0)
    teacher = plan.tasks["0/teacher"]
    written(tmp_path / "seed-0" / "teacher", teacher, {})
    stop(tmp_path / "seed-0" / "teacher", 48)
    said = r"cannot train 0/facm: its teacher .*seed-0/teacher collapsed after 48 images"
    with pytest.raises(ValueError, match=said):
        in_turn(plan, evaluator)
    with pytest.raises(ValueError, match=said):
        side_by_side(plan, evaluator, 2, [sys.executable, "-c", "raise SystemExit(7)"])


# --- side by side ----------------------------------------------------------------------------------------------------


@dataclass
class Tasks:
    """Tasks that are files: done where ``home/done-NAME`` is, waiting for another where ``needs`` says so."""

    home: Path
    names: tuple[str, ...]
    needs: dict[str, str] = field(default_factory=dict)

    @property
    def tasks(self):
        return dict.fromkeys(self.names)

    def done(self, task, evaluator):
        return (self.home / f"done-{task}").exists()

    def ready(self, task):
        return task not in self.needs or self.done(self.needs[task], None)

    def why_not(self, task):
        return f"{task} waits in vain"


CHILD = """
import os, signal, sys, time
from pathlib import Path
home, task = Path(sys.argv[1]), sys.argv[sys.argv.index("--only") + 1]
def there(name):
    until = time.monotonic() + 500
    while not (home / name).exists():
        assert time.monotonic() < until, name
        time.sleep(0.01)
def ended(*_):
    (home / f"stopped-{task}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, ended)
(home / f"asked-{task}").write_text(repr((sys.argv[2:], os.environ["OMP_NUM_THREADS"])))
(home / f"running-{task}").touch()
(home / f"count-{task}").write_text(str(len(list(home.glob("running-*")))))
"""
DONE = """
(home / f"running-{task}").unlink()
(home / f"done-{task}").touch()
"""


def child(home, then=""):
    return [sys.executable, "-S", "-c", CHILD + then, str(home), "study", "x"]


def files(home, kind):
    return sorted(p.name.removeprefix(f"{kind}-") for p in home.glob(f"{kind}-*"))


def test_so_many_run_at_a_time_and_no_more(tmp_path):
    plan = Tasks(tmp_path, tuple("abcde"))
    (tmp_path / "done-e").touch()
    # a and b wait for each other: they can only end if they run at the same time
    both = 'there({"a": "asked-b", "b": "asked-a"}.get(task, "asked-a"))\n'
    assert side_by_side(plan, None, 2, child(tmp_path, both + DONE)) is True
    assert files(tmp_path, "asked") == list("abcd"), "e was done"
    counts = [int((tmp_path / f"count-{task}").read_text()) for task in "abcd"]
    assert max(counts) <= 2
    share = str(max(1, (os.cpu_count() or 1) // 2))
    assert (tmp_path / "asked-a").read_text() == repr((["study", "x", "--only", "a"], share))


def test_with_one_job_there_is_one_at_a_time_in_order(tmp_path):
    plan = Tasks(tmp_path, ("c", "a", "b"))
    order = '(home / "order").open("a").write(task)\n'
    assert side_by_side(plan, None, 1, child(tmp_path, order + DONE)) is True
    assert (tmp_path / "order").read_text() == "cab"
    assert {(tmp_path / f"count-{task}").read_text() for task in "abc"} == {"1"}


def test_a_network_waits_for_its_teacher(tmp_path):
    """The students come first in the list, and others that need not wait overtake them."""
    plan = Tasks(tmp_path, ("student", "teacher", "other"), {"student": "teacher"})
    first = 'assert task != "student" or (home / "done-teacher").exists()\n'
    slow = 'task == "teacher" and there("asked-other")\n'
    assert side_by_side(plan, None, 2, child(tmp_path, first + slow + DONE)) is True
    assert files(tmp_path, "done") == ["other", "student", "teacher"]


def test_one_that_fails_stops_the_others_and_is_named(tmp_path):
    plan = Tasks(tmp_path, ("good", "bad", "next"))
    then = 'there("asked-good")\nif task == "bad": sys.exit(5)\nthere("never")\n'
    with pytest.raises(RuntimeError, match="seed bad failed with status 5; its message is above"):
        side_by_side(plan, None, 2, child(tmp_path, then))
    assert files(tmp_path, "stopped") == ["good"]
    assert files(tmp_path, "asked") == ["bad", "good"], "nothing more is started"


def test_a_command_that_cannot_start_stops_the_others(tmp_path, monkeypatch):
    plan = Tasks(tmp_path, ("good", "bad"))
    start = Children.run

    def run(self, task):
        if task == "good":
            return start(self, task)
        while not (tmp_path / "asked-good").exists():
            time.sleep(0.01)
        raise OSError("no such command")

    monkeypatch.setattr(Children, "run", run)
    with pytest.raises(OSError, match="no such command"):
        side_by_side(plan, None, 2, child(tmp_path, 'there("never")\n'))
    assert files(tmp_path, "stopped") == ["good"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_and_ends_the_study(tmp_path, number):
    """Sent by one of the children once all of them are listening."""
    plan = Tasks(tmp_path, ("a", "b", "c"))
    before = signal.getsignal(number)
    then = f'there("asked-a"); there("asked-b")\nif task == "a": os.kill(os.getppid(), {number:d})\nthere("never")\n'
    assert side_by_side(plan, None, 2, child(tmp_path, then)) is False
    assert files(tmp_path, "stopped") == ["a", "b"]
    assert files(tmp_path, "asked") == ["a", "b"]
    assert signal.getsignal(number) is before


def test_a_child_that_was_interrupted_by_itself_interrupts_the_study(tmp_path):
    plan = Tasks(tmp_path, ("a", "b"), {"b": "a"})
    assert side_by_side(plan, None, 2, child(tmp_path)) is False
    assert files(tmp_path, "asked") == ["a"]


def test_one_that_can_never_start_is_named(tmp_path):
    plan = Tasks(tmp_path, ("a", "b"), {"b": "elsewhere"})
    with pytest.raises(ValueError, match="b waits in vain"):
        side_by_side(plan, None, 2, child(tmp_path, DONE))
    assert files(tmp_path, "done") == ["a"]


def test_nothing_left_starts_nothing(home, evaluator):
    assert side_by_side(plan_of(home, 0), evaluator, 2, [sys.executable, "-c", "raise SystemExit(7)"]) is True


def test_no_child_starts_after_the_stop(tmp_path):
    children = Children(child(tmp_path), 1)
    children.stop()
    assert children.run("a") == 0
    assert files(tmp_path, "asked") == []


@pytest.mark.parametrize(("gpus", "expected"), [(0, None), (1, None), (2, "1"), (8, "3")])
def test_every_child_has_its_share(monkeypatch, gpus, expected):
    monkeypatch.setattr(schedule.torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(schedule.torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(schedule.os, "cpu_count", lambda: 9)
    share = schedule._share(3, 4)
    assert share["OMP_NUM_THREADS"] == "2"
    assert share.get("CUDA_VISIBLE_DEVICES") == expected
    assert schedule._share(0, 100)["OMP_NUM_THREADS"] == "1"


def test_rows_of_somebody_else_are_left_out_of_what_is_said(tmp_path):
    mine = [{"images": 64, "nfe": 1, "frechet_distance": 0.5}, {"images": 32, "nfe": 1, "frechet_distance": 0.9}]
    for record in [{}, {"images": "many"}, {"images": 128, "nfe": 1}, *mine]:
        logs.append(tmp_path / "evaluations.jsonl", record)
    assert schedule._state(tmp_path) == "1 step: 0.500"

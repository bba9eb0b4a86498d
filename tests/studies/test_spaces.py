"""The tables of a study in two spaces: numbers of both at the end, ranks on the way, pairs in the same order."""

from dataclasses import replace

import pytest

from facm.runs import log as logs
from facm.runs.folder import create
from facm.studies.spaces import agreement, further_tables, groups
from facm.studies.study import check_study
from facm.studies.summary import summarise
from facm.studies.table import rows
from facm.studies.train_and_measure import wanted
from tests.studies.study_parts import N, bench, pair, row, stop

SHARES = {"accuracy": 0.9, "precision": 0.8, "recall": 0.7}
HERE = {"facm": 1.0, "plain-cm": 2.0, "facm-later": 4.0, "plain-cm-later": 3.0}
THERE = {"facm": 10.0, "plain-cm": 20.0, "facm-later": 30.0, "plain-cm-later": 40.0}


def study_of(home, seed):
    """A pair at two budgets, each pair compared within itself, measured at the middle and the end."""
    made = pair(bench(home, seed))
    facm, plain = (replace(e, at=(32,), nfe=(1, 2), published={}) for e in made.entries)
    later = [replace(e, name=f"{e.name}-later", label=f"{e.label} later", against="facm-later") for e in (facm, plain)]
    longer = [replace(e, run=replace(e.run, images=96)) for e in later]
    return replace(made, entries=(facm, plain, *longer), free=("budget",), pixels=True)


@pytest.fixture
def both(tmp_path):
    """The summaries in the features and in pixels, of two seeds: with one step as HERE and THERE say, a tenth more with
    the second seed, twice as much in the middle; with two steps half as much."""
    studies = {seed: study_of(tmp_path, seed) for seed in (0, 1)}
    for seed, made in studies.items():
        check_study(made, tmp_path / f"seed-{seed}")
        for entry in made.parts:
            folder = create(tmp_path / f"seed-{seed}" / entry.name, entry.run)
            for features, values in (("quarters", HERE), ("identity", THERE)):
                for want in wanted(entry):
                    value = values.get(entry.name, 0.5) * (1 + seed / 10) / want.nfe * (1 + (want.images is not None))
                    logs.append(folder.evaluations, row(entry, want, value, features=features, **SHARES))
    return tuple(summarise(studies, tmp_path, N, features, 0.1) for features in ("quarters", "identity"))


def test_rows_are_grouped_and_compared_with_their_own_row(both):
    assert [[line.entry.name for line in lines] for lines in groups(both[0])] == [
        ["facm", "plain-cm"],
        ["facm-later", "plain-cm-later"],
    ]
    header, body = rows(both[0])
    column = header.index("1 step, minus the row that it is compared with")
    assert [line[column] for line in body] == [
        "",
        "",
        "+1.050 ± 0.071 (worse in 2/2)",
        "",
        "-1.050 ± 0.071 (worse in 0/2)",
    ]


def test_pairs_in_the_same_order_are_counted(both):
    assert "agree on the order of 1 of 2 pairs" in agreement(*both, 1)  # the later two are not
    assert "agree on the order of 2 of 2 pairs" in agreement(both[0], both[0], 2)


def test_the_end_is_shown_in_both_spaces_with_precision_recall_and_accuracy(both):
    (title, text, (header, body)), _ = further_tables(*both)
    assert title == "Two feature spaces"
    assert "quarters" in text
    assert header[:4] == ("", "1 step, features", "2 steps, features", "4 steps, features")  # 4: the teacher's most
    assert body[0][header.index("4 steps, pixels")] == "0.131 ± 0.009"
    assert body[1][header.index("4 steps, pixels")] == ""
    line = dict(zip(header, body[2], strict=True))
    assert line["1 step, features"] == "2.100 ± 0.141"
    assert line["2 steps, features"] == "1.050 ± 0.071"
    assert line["1 step, pixels"] == "21.000 ± 1.414"
    assert [line[f"1 step, {what}"] for what in SHARES] == [f"{value:.3f} ± 0.000" for value in SHARES.values()]


def test_the_ranks_are_those_within_a_group_at_each_clock(both):
    _, (title, _, (header, body)) = further_tables(*both)
    assert title == "Over the run"
    assert header == ("", "1/2 of the run", "end")
    assert [line[0] for line in body] == [line.entry.label for line in both[0].lines]
    assert [line[1:] for line in body] == [
        ("2.100 ± 0.141 (1)", "1.050 ± 0.071 (1)"),
        ("4.200 ± 0.283 (2)", "2.100 ± 0.141 (2)"),
        ("8.400 ± 0.566 (2)", "4.200 ± 0.283 (2)"),
        ("6.300 ± 0.424 (1)", "3.150 ± 0.212 (1)"),
    ]


def test_a_collapsed_row_has_no_rank_and_is_in_no_pair(both, tmp_path):
    stop(tmp_path / "seed-1" / "plain-cm", 40)
    studies = {seed: study_of(tmp_path, seed) for seed in (0, 1)}
    again = tuple(summarise(studies, tmp_path, N, features, 0.1) for features in ("quarters", "identity"))
    _, (_, _, (_, body)) = further_tables(*again)
    assert body[1][1:] == ("- (-)", "- (-)")
    assert body[0][2] == "1.050 ± 0.071 (1)"
    assert "of 0 of 1 pairs" in agreement(*again, 1)

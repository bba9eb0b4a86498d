"""The table of cutoffs of a time embedding, before anything is trained."""

from dataclasses import replace

import torch

from facm import FACM
from facm.flow.phases import Phases
from facm.foundation.probe import probe
from tests.foundation.wan_parts import tiny_wan, wan_run


def test_half_of_a_pair_is_probed_at_its_own_times(tmp_path, monkeypatch):
    run = wan_run(tiny_wan(tmp_path / "wan"), lora=True)
    seen = []
    evaluate = FACM.evaluate

    def watched(objective, network, point, teacher):
        seen.append(point.t)
        return evaluate(objective, network, point, teacher)

    monkeypatch.setattr(FACM, "evaluate", watched)
    probe(run, run.data.open(), torch.device("cpu"), n=4)
    half = replace(run, objective=replace(run.objective, phases=Phases((0.0, 0.125))))
    probe(half, half.data.open(), torch.device("cpu"), n=4)
    whole, part = seen[0], seen[-1]
    assert whole.max() > 0.125
    torch.testing.assert_close(part, whole * 0.125)

"""The shortcut's target, by hand."""

import torch

from facm.objectives.consistency_target import shortcut_target


def test_shortcut_target_on_a_hand_case():
    F_CM, dF, v = torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, -2.0]]), torch.tensor([[0.5, 0.5]])
    target = shortcut_target(F_CM, dF, v, torch.tensor([0.25]), torch.tensor([0.5]), 1.0)
    assert target.v_bar.tolist() == [[1.0, 0.0]]  # v + 0.25 dF
    assert target.g.tolist() == [[0.0, 5.0]]  # before the clamp
    assert target.v_tar.tolist() == [[1.0, 4.5]]  # 5 - 0.5 * 1
    assert shortcut_target(F_CM, dF, v, torch.tensor([0.25]), torch.ones(1), None).v_tar.tolist() == [[1.0, 0.0]]
    assert shortcut_target(-F_CM, -dF, -v, torch.tensor([0.25]), torch.ones(1), 1.0).v_tar.tolist() == [[-1.0, -4.0]]

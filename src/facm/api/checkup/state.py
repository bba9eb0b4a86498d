"""What a network keeps or draws besides its weights: norms over batches, buffers that move, dropout, randomness."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facm.api.checkup.finding import Finding
from facm.api.checkup.subject import Subject, relative
from facm.core.cond import taken

SAME = 1e-3
"""Relative difference of one sample alone and in a batch that is rounding."""
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@torch.no_grad()
def state_found(subject: Subject) -> list[Finding]:
    """Findings about state, in eval mode and in the train mode that a student is trained in."""
    network, found = subject.copy(), list[Finding]()
    cond = subject.batch.cond
    before = _buffers(network)
    x_t, t = subject.point(0.5)
    function = subject.shortcut(cond, network)
    first, again = function(x_t, t), function(x_t, t)
    if moved := _moved(before, network):
        said = f"forward writes into {subject.named(moved)}, in eval mode, too"
        found.append(
            Finding("state", "wrong", said, f"# no write into self.{subject.named(moved).split()[0]} in forward")
        )
    if not torch.equal(first, again) and relative(first - again, first) > SAME:
        found.append(
            Finding(
                "randomness",
                "wrong",
                f"two passes in eval mode differ by {relative(first - again, first):.1%}",
                "if self.training: ...  # around what draws random numbers",
            )
        )
    elif len(x_t) > 1:
        alone = subject.shortcut(taken(cond, slice(0, 1)), network)(x_t[:1], t[:1])
        if (apart := relative(alone - first[:1], first[:1])) > SAME:
            found.append(Finding("batch", "wrong", f"in eval mode a sample depends on the others: {apart:.1%}", ""))
    found += _in_train_mode(subject, network, function(x_t, t), bool(moved))
    return found or [Finding("state", "good", "no norm over batches, no buffer that moves, no dropout, no randomness")]


def _in_train_mode(subject: Subject, network: nn.Module, evaluated: Tensor, moves: bool) -> list[Finding]:
    found = list[Finding]()
    dropouts = [name for name, m in network.named_modules() if isinstance(m, DROPOUTS) and m.p > 0]
    if dropouts:
        more = f" and {len(dropouts) - 1} more" if len(dropouts) > 1 else ""
        said = f"{subject.named(dropouts[0])}{more}: the student trains with it"
        found.append(Finding("dropout", "note", said, "net.apply(...)  # p = 0 for a student of a large teacher"))
    for module in network.modules():
        if isinstance(module, DROPOUTS):
            module.p = 0.0
    before = _buffers(network)
    network.train()
    x_t, t = subject.point(0.5)
    cond = subject.batch.cond
    try:
        trained = subject.shortcut(cond, network)(x_t, t)
    except Exception as error:  # of the user's own forward
        said = f"forward fails in train mode ({type(error).__name__}: {error})"
        return [*found, Finding("train mode", "wrong", said, "net.train() must work: a student is trained in it")]
    if moves:
        return found
    if moved := _moved(before, network):
        found.append(
            Finding(
                "state",
                "wrong",
                f"train mode writes into {subject.named(moved)}: every pass of a step does, at different times",
                "def train(self, mode=True): return super().train(False)  # in the network's class; or GroupNorm",
            )
        )
    elif (apart := relative(trained - evaluated, evaluated)) > SAME:
        found.append(Finding("train mode", "note", f"its output differs from eval mode's by {apart:.1%}"))
    return found


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


def _moved(before: dict[str, Tensor], network: nn.Module) -> str:
    """The first buffer that is another than before, with how many more are; empty where none is."""
    after = dict(network.named_buffers())
    moved = [name for name, value in before.items() if name in after and not torch.equal(value, after[name])]
    moved += [name for name in after if name not in before]
    return f"{moved[0]}{f' and {len(moved) - 1} more' * (len(moved) > 1)}" if moved else ""

"""facm.check: each fault of a network is found by its line, and a right one has none."""

import re

import pytest
import torch
from torch import nn

import facm
from tests.api import flows_parts as flows
from tests.api.flows_parts import Flow, Labelled, normal_data

RIGHT = {"the same": Flow(), "reversed and scaled": flows.Reversed()}
FAULTS = {
    "negated": (Flow("negated"), {}, "convention", r"\(noise\) to 1 \(data\), predicts the negated", "return -out"),
    "noise": (Flow("noise"), {}, "convention", "predicts the noise", r"return \(x - out\) / t "),
    "data": (Flow("data"), {}, "convention", "predicts the data", r"return \(out - x\) / \(1 - t\) "),
    "ddpm": (flows.DDPM(), {}, "convention", "noise of a DDPM", r'predicts="noise"'),
    "said otherwise": (
        *(flows.Reversed(), {"noise_at": 0, "time_scale": 1}, "convention", r"to 1 \(data\) was said"),
        "noise_at=1000, time_scale=1000",
    ),
    "fast": (flows.Fast(), {}, "clamped", r"^1\.00 of", "frequencies < 100"),
    "rounded": (flows.Rounded(), {}, "time", r": 0 at t = 0\.05", "as a float"),
    "beyond its times": (flows.Rounded(), {}, "anchor", "fails at c_FM", "embedding of time by a formula"),
    "norm": (flows.Normed(), {}, "state", r"train mode writes into norm\.running_mean and 2 more", "GroupNorm"),
    "buffer": (flows.Counting(), {}, "state", "forward writes into passes, in eval mode", r"self\.passes"),
    "random": (flows.Noisy(), {}, "randomness", "two passes in eval mode differ", r"self\.training"),
    "wrong jvp": (
        *(flows.WithKernel(True), {}, "forward mode", r"^middle\.1 \(Own\): silently off by 100%$"),
        r"facm\.Unconditional\(\), derivative=facm\.derivative\.FiniteDifference",
    ),
    "no jvp": (flows.WithKernel(False), {}, "forward mode", r"^middle\.1 \(Own\): .* _Missing", "FiniteDifference"),
    "step too large": (Flow(), {"gpu_memory": 1.0}, "memory", r"of 1 GB on a GPU", "checkpointing=True"),
}


def check(net, data=None, **how):
    return facm.check(net, normal_data() if data is None else data, quiet=True, **how)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_network_has_nothing_to_mend(kind, capsys):
    found = check(RIGHT[kind])
    assert found.good, str(found)
    assert {finding.verdict for finding in found.findings} == {"good"}
    assert capsys.readouterr().out == ""
    assert str(found).startswith(f"{type(RIGHT[kind]).__name__}: nothing is wrong\nok     convention")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_with_the_line_to_write(fault):
    net, how, what, said, line = FAULTS[fault]
    found = check(net, **how)
    assert not found.good
    finding = next(each for each in found.wrong if each.what == what)
    assert re.search(said, finding.found), finding
    assert re.search(line, finding.write), finding
    assert f"write: {finding.write}" in str(found)
    alone = {"rounded": {"time", "anchor", "convention"}, "beyond its times": {"time", "anchor", "convention"}}
    assert {each.what for each in found.wrong} <= alone.get(fault, {what}), str(found)


@pytest.mark.slow
def test_the_null_is_held_against_the_data():
    def null(guidance_scale, *net):
        found = facm.check(
            Labelled(*net), normal_data(labels=3), classes=3, guidance_scale=guidance_scale, quiet=True
        ).of("null")
        return found.verdict, found.found, found.write

    assert null(2, 4)[0] == "good"
    verdict, said, line = null(2, 3)
    assert (verdict, line.split("  ")[0]) == ("wrong", "guidance_scale=1")
    assert "the label 3 is out of the network's range" in said
    assert null(1, 3)[0] == "note"
    assert null(2, 4, False, 9.0)[0] == "wrong"
    assert "not learned" in null(1, 4, False, 9.0)[1]
    ignored = facm.check(Labelled(4, True), normal_data(labels=3), classes=3, quiet=True).of("condition")
    assert ignored.verdict == "wrong"
    assert "another one changes nothing" in ignored.found


def test_data_of_another_scale_and_none_at_all(tmp_path):
    found = check(Flow(), 0.1 * normal_data(), out=tmp_path / "x.png")
    assert found.of("data").verdict == "wrong"
    assert re.match(r"\(x - 0\.03\d*\) / 0\.06", found.of("data").write)
    assert found.picture == tmp_path / "x.png"
    assert found.picture.stat().st_size > 500
    with pytest.raises(ValueError, match=r"out = .*x\.png exists and is not overwritten"):
        check(Flow(), out=tmp_path / "x.png")
    with pytest.raises(ValueError, match="neither data nor shape are given"):
        facm.check(Flow())
    with pytest.raises(ValueError, match=r"network = 3, expected a torch\.nn\.Module"):
        facm.check(3, shape=(2,))
    with pytest.raises(ValueError, match=r"network Labelled fails for x .* no condition \(TypeError: .*'y'\)"):
        facm.check(Labelled(4), shape=flows.SHAPE, quiet=True)


@pytest.mark.slow
def test_nothing_in_the_network_is_changed():
    net = flows.Normed().train()
    net.norm.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    check(net)
    assert net.training
    assert not net.norm.weight.requires_grad
    assert net.mean.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_without_data_what_needs_them_is_left_out():
    found = facm.check(Flow(), shape=flows.SHAPE, quiet=True)
    assert found.good
    assert {each.what for each in found.findings if each.verdict == "note"} >= {"convention", "data"}
    assert found.of("forward mode").verdict == "good"


@pytest.mark.slow
def test_dropout_is_said_and_is_no_fault():
    class Dropping(Flow):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.3)

        def extra(self, x, t):
            return 0.01 * self.drop(x)

    found = check(Dropping())
    assert found.good
    assert found.of("dropout").found.startswith("drop: ")

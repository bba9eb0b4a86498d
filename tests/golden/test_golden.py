"""The authors' public code and this package give the same numbers (see golden/README.md)."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from facm.derivative import FiniteDifference, NoGraph, WholeNetwork
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance, velocity_field
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import ExpandedInterval, native
from facm.flow.times import ArctanLogNormal, LogitNormal
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.lightning_dit import from_reference_flags, lightning_dit, sinusoid
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.runs.ema import EMA, PowerEMA, Snapshot, decay, synthesise
from facm.sampling import solvers as samplers
from tests.golden.gold import fill, probe, tensor, tensor64
from tests.paths import GOLDEN

STATE_DICTS = json.loads((GOLDEN / "dit_state_dicts.json").read_text())
FORWARD, FORWARD_SUMS = load_file(GOLDEN / "forward.safetensors"), json.loads((GOLDEN / "forward.json").read_text())
LOSSES, LOSS_SCALARS = load_file(GOLDEN / "losses.safetensors"), json.loads((GOLDEN / "losses.json").read_text())
SAMPLES, SAMPLER_CALLS = load_file(GOLDEN / "samplers.safetensors"), json.loads((GOLDEN / "samplers.json").read_text())
TIMES, QUANTILES = load_file(GOLDEN / "sample_t.safetensors"), json.loads((GOLDEN / "sample_t.json").read_text())
POSTHOC = json.loads((GOLDEN / "posthoc_ema.json").read_text())


def tiny(model, salt="student"):
    return fill(from_reference_flags(STATE_DICTS["tiny" + model]["cfg"]).build(), salt)


def shape_of(model, batch):
    return (batch, 8, 4, 4) if model == "C" else (batch, 4, 8, 8)


def close(a, b, rtol=1e-5):
    """Within rtol of the largest element: fp32 sums in another order, and elements that pass through zero."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


# Networks


@pytest.mark.parametrize("model", "ABCDE")
def test_tiny_state_dict_has_the_references_keys_shapes_and_parameter_order(model):
    expected = STATE_DICTS["tiny" + model]
    network = tiny(model)
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == expected["state_dict"]
    assert [name for name, _ in network.named_parameters()] == expected["param_order"]
    assert sorted(name for name, _ in network.named_buffers()) == sorted(expected["buffers"])
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected["n_trainable"]


@pytest.mark.parametrize("auxiliary_time", [False, True])
def test_xl_state_dict_has_the_references_keys_shapes_and_parameter_order(auxiliary_time):
    expected = STATE_DICTS["LightningDiT-XL/1" + ("+aux" if auxiliary_time else "")]
    with torch.device("meta"):
        network = lightning_dit("XL/1", auxiliary_time=auxiliary_time).build()
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == expected["state_dict"]
    assert [name for name, _ in network.named_parameters()] == expected["param_order"]
    assert sum(p.numel() for p in network.parameters()) == expected["n_params"]
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected["n_trainable"]


@pytest.mark.parametrize("name", STATE_DICTS["counts"])
def test_published_sizes_have_the_references_number_of_parameters(name):
    with torch.device("meta"):
        network = lightning_dit(name.removeprefix("LightningDiT-")).build()
    assert sum(p.numel() for p in network.parameters()) == STATE_DICTS["counts"][name]


def test_fixed_tables_are_the_references():
    network = tiny("A")
    assert torch.equal(network.pos_embed, FORWARD["A.pos_embed"])
    close(network.feat_rope.freqs_cos, FORWARD["A.freqs_cos"], 1e-6)
    close(network.feat_rope.freqs_sin, FORWARD["A.freqs_sin"], 1e-6)
    close(sinusoid(FORWARD["timestep_embedding.t"]), FORWARD["timestep_embedding.out"], 1e-6)


def forward(model):
    x = tensor(f"fwd:{model}:x", shape_of(model, 4))
    second = {"r": FORWARD["A.r"]} if model == "B" else {}
    return tiny(model).eval()(x, FORWARD["A.t"], FORWARD["A.y"], **second).detach()


@pytest.mark.parametrize("model", "AC")
def test_forward(model):
    close(forward(model), FORWARD[model + ".out"])


@pytest.mark.parametrize("model", "ABCDE")
def test_forward_sum_and_spread(model):
    out, expected = forward(model).double(), FORWARD_SUMS[model]
    assert out.sum().item() == pytest.approx(expected["out_sum"], abs=1e-5 * out.abs().sum().item())
    assert out.std().item() == pytest.approx(expected["out_std"], rel=1e-6)


# Losses

T, Y = torch.tensor([0.03, 0.125, 0.31, 0.57, 0.83, 0.985]), torch.tensor([3, 207, 0, 999, 512, 88])


def loss_case(name, derivative):
    c = LOSS_SCALARS[name]
    guidance = Guidance(c["cfgw"], c["glow"], c["ghigh"])
    if c["distill"]:
        objective = FACM(Labels(1000), TeacherVelocity(guidance), derivative=derivative)
        teacher = tiny(c["model"], "teacher").eval()
    else:  # the reference's unconditional velocity: the student at c = t, and no switching off outside the interval
        target = DataVelocity(guidance, at_shortcut=True, extrapolate_outside=True)
        objective, teacher = FACM(Labels(1000), target, derivative=derivative, label_dropout=0.1), None
    student, shape = tiny(c["model"]).train(), shape_of(c["model"], 6)
    terms = objective.evaluate(
        student, Interpolant.between(tensor("loss:noise", shape), tensor("loss:images", shape), T, Y), teacher
    )
    terms.loss().total.backward()
    return c, terms, student


@pytest.mark.parametrize("derivative", [NoGraph(), WholeNetwork()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("name", LOSS_SCALARS)
def test_loss_every_intermediate_and_every_gradient(name, derivative):
    c, terms, student = loss_case(name, derivative)
    stored = {"x_t": "x_t", "v": "v", "F_CM": "F_avg", "dF": "F_avg_grad", "v_bar": "v_bar", "v_tar": "cm_target"}
    stored |= {"F_FM": "F_fm", "L_FM": "fm_per_sample", "L_norm": "cm_per_sample_unweighted"}
    for ours, theirs in stored.items():
        close(getattr(terms, ours).detach(), LOSSES[f"{name}/{theirs}"])
    loss = terms.loss()
    assert loss.total.item() == pytest.approx(c["total"], rel=1e-5)
    assert terms.L_CM.mean().item() == pytest.approx(c["cm"], rel=1e-5)
    assert terms.L_FM.mean().item() == pytest.approx(c["fm"], rel=1e-5)
    assert loss.terms["clamped"].mean().item() == pytest.approx(c["clamped_fraction"], abs=1e-6)
    assert terms.dF.square().mean().sqrt().item() == pytest.approx(c["tangent_rms"], rel=1e-5)

    gradients = {k: p.grad for k, p in student.named_parameters()}
    assert [k for k, g in gradients.items() if g is None] == c["no_grad_params"] == ["pos_embed"]
    del gradients["pos_embed"]
    assert gradients.keys() == c["grad_norm"].keys() == c["grad_probe"].keys()
    for k, g in gradients.items():
        assert g.norm().item() == pytest.approx(c["grad_norm"][k], rel=1e-4), k
        assert probe(k, g) == pytest.approx(c["grad_probe"][k], abs=1e-4 * c["grad_norm"][k]), k
        if f"{name}/grad.{k}" in LOSSES:
            close(g, LOSSES[f"{name}/grad.{k}"], 1e-4)


@pytest.mark.parametrize("name", ["facm_A_distill", "facm_A_scratch"])
def test_some_gradients_are_stored_element_by_element(name):
    stored = {key.removeprefix(f"{name}/grad.") for key in LOSSES if key.startswith(f"{name}/grad.")}
    assert len(stored) == 6
    assert stored <= LOSS_SCALARS[name]["grad_norm"].keys()


def test_finite_differences_agree_with_the_references_tangent():
    _, terms, _ = loss_case("facm_A_distill", FiniteDifference(5e-3))
    error = (terms.dF - LOSSES["facm_A_distill/F_avg_grad"]).norm() / LOSSES["facm_A_distill/F_avg_grad"].norm()
    assert error < 1e-3


def test_flow_matching_is_the_references_anchor_when_the_velocity_is_the_datas():
    """With w = 1 the anchor's prediction is that of the loss files; only the target differs."""
    student, shape = tiny("A"), shape_of("A", 6)
    terms = FlowMatching(Labels(1000)).evaluate(
        student,
        Interpolant.between(tensor("loss:noise", shape), tensor("loss:images", shape), T, Y),
        torch.ones(6, dtype=torch.bool),
    )
    close(terms.F.detach(), LOSSES["facm_A_distill/F_fm"])
    close(terms.x_t, LOSSES["facm_A_distill/x_t"])
    assert torch.equal(terms.v, tensor("loss:images", shape) - tensor("loss:noise", shape))


# Samplers


class Recorded(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, []

    def forward(self, x, t, cond):
        assert x.dtype == t.dtype == torch.float32
        self.calls.append((len(x), t[0].item(), cond.tolist()))
        return self.network(x, t, cond)


@pytest.mark.parametrize("name", SAMPLER_CALLS)
def test_sampler_and_its_schedule_of_network_calls(name):
    case = SAMPLER_CALLS[name]
    options, consistency = case["kwargs"], name.startswith("cm")
    x_0, y = tensor("sampler:latents", (4, 4, 8, 8)), torch.tensor([1, 207, 999, 3])
    network = Recorded(tiny(case["model"]).eval())
    guidance = Guidance(options.get("cfg_scale", 1.0), options.get("guidance_low", 0.1), 1.0)
    at = ExpandedInterval().shortcut if consistency else partial(native, network)
    F = velocity_field(network, at, y, Labels(1000), guidance)
    times = samplers.uniform_times(options["num_steps"])
    if consistency:
        out = samplers.consistency(F, x_0, times, lambda i: tensor64(f"sampler:noise{i - 1}", x_0.shape))
    else:
        out = (samplers.heun if options.get("heun") else samplers.euler)(F, x_0, times)
    assert out.dtype == torch.float32
    close(out.double(), SAMPLES[name])
    assert network.calls == [(c["batch"], pytest.approx(c["t"]), c["y"]) for c in case["model_calls"]]


# Times and EMA


def test_times_of_injected_normals():
    close(ArctanLogNormal(-0.8, 1.6).from_normal(TIMES["z"]), TIMES["t_default"], 1e-6)
    close(LogitNormal(0.8, 1.6).from_normal(TIMES["z"]), TIMES["t_log"], 1e-6)


@pytest.mark.parametrize(
    ("time", "expected"),
    [(ArctanLogNormal(-0.8, 1.6), QUANTILES["quantiles"]), (LogitNormal(0.8, 1.6), QUANTILES["log"]["quantiles"])],
    ids=["arctan", "logit"],
)
def test_sampled_times_have_the_references_quantiles(time, expected):
    t = time.sample(100_000, torch.Generator().manual_seed(0))
    for q, value in expected.items():
        assert t.quantile(float(q)).item() == pytest.approx(value, abs=6e-3)


@pytest.fixture(scope="module")
def trace():
    """Running EMAs of a scalar that is sqrt(k) after step k, and their snapshots every 5 steps."""
    module = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(PowerEMA(tuple(POSTHOC["sigma_rels"])), module)
    snapshots = []
    for k in range(1, 41):
        module.weight.data.fill_(k**0.5)
        ema.update(k, 1)
        if k % POSTHOC["every"] == 0:
            for sigma_rel, average in ema.averages.items():
                frozen = {name: value.clone() for name, value in average.items()}
                snapshots.append(Snapshot(k, sigma_rel, lambda frozen=frozen: frozen))
    return ema, snapshots


def test_running_ema(trace):
    for sigma_rel, expected in zip(POSTHOC["sigma_rels"], POSTHOC["ema_final"], strict=True):
        assert trace[0].averages[sigma_rel]["weight"].item() == pytest.approx(expected, rel=1e-6)
        scalar = 0.0
        for k in range(1, 41):
            beta = decay(sigma_rel, k, 1)
            scalar = beta * scalar + (1 - beta) * k**0.5
        assert scalar == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.15, 0.2, 0.25])
def test_post_hoc_synthesis(trace, sigma_rel):
    out = synthesise(trace[1], 40, sigma_rel)["weight"].item()
    assert out == pytest.approx(POSTHOC["synth"][f"{sigma_rel:g}"], rel=1e-5)

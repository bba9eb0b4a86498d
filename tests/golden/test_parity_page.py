"""The examples of docs/parity.md give the reference's numbers, on the inputs that are kept of it."""

import dataclasses
import json
import pkgutil
import re

import pytest
import torch
from safetensors.torch import load_file

from facm.networks.lightning_dit import from_reference_flags
from facm.recipes.imagenet256 import imagenet256_lightningdit_xl
from tests.golden.gold import fill, tensor, tensor64, weight
from tests.paths import GOLDEN, ROOT

PAGE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LOSSES = json.loads((GOLDEN / "losses.json").read_text())
RIVALS = json.loads((GOLDEN / "rivals.json").read_text())
TENSORS = load_file(GOLDEN / "losses.safetensors") | load_file(GOLDEN / "rivals.safetensors")
SAMPLES = load_file(GOLDEN / "samplers.safetensors")
FLAGS = {model: json.loads((GOLDEN / "dit_state_dicts.json").read_text())[f"tiny{model}"]["cfg"] for model in "AB"}


def tiny(model, salt, **flags):
    return fill(from_reference_flags(FLAGS[model] | flags).build(), salt)


def weighted():
    network = tiny("A", "student", weight_head=True)
    with torch.no_grad():
        for name, p in network.AdaLoss.named_parameters():
            p.copy_(weight("adaloss", name, tuple(p.shape)))
    return network


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.fixture(scope="module")
def page():
    """The names after each example, in the page's order; the inputs and the rivals' networks are the golden files'."""
    shape = (6, 4, 8, 8)
    x_0, x_1 = tensor("loss:noise", shape), tensor("loss:images", shape)
    t = torch.tensor([0.03, 0.125, 0.31, 0.57, 0.83, 0.985])
    names = {
        "x_0": x_0,
        "x_1": x_1,
        "t": t,
        "s": torch.tensor([0.44, 0.08, 0.66, 0.57, 0.20, 0.74]),
        "y": torch.tensor([3, 207, 0, 999, 512, 88]),
        "x_t": TENSORS["facm_A_distill/x_t"],
        "state_dict": {f"module.{name}": value for name, value in tiny("A", "student").state_dict().items()},
        "latents": tensor("sampler:latents", (4, 4, 8, 8)),
        "classes": torch.tensor([1, 207, 999, 3]),
        "z": [tensor64(f"sampler:noise{i}", (4, 4, 8, 8)) for i in range(3)],
    }
    after = []
    for block in BLOCKS:
        stands_in = {"two_times": tiny("B", "student"), "weighted": weighted()} if after else {}
        model = "B" if "MeanFlow" in block else "A"
        names |= stands_in | {"teacher": tiny(model, "teacher").eval()}
        exec(compile(block, "docs/parity.md", "exec"), names)
        after.append(dict(names))
    return after


def after(page, last):
    """The names once the example that defines ``last`` has run."""
    return next(names for names in page if last in names)


def test_the_network(page):
    names = after(page, "v")
    close(names["v"].detach(), tiny("A", "student")(names["x_t"], names["t"], names["y"]).detach())
    built = names["published"], names["two_times"], names["weighted"]
    assert [(n.auxiliary_time, n.weight_head) for n in built] == [(False, False), (True, False), (False, True)]
    config, t, y = names["published"].config, torch.rand(2), torch.tensor([0, 1000])
    x = torch.randn(2, config.in_channels, config.input_size, config.input_size)
    assert names["weighted"].log_weight(t).shape == t.shape
    assert not names["published"](x, t, y).any()
    assert not names["two_times"](x, t, y, t).any()


def test_facm(page):
    names = after(page, "terms")
    stored = {"x_t": "x_t", "v": "v", "F_CM": "F_avg", "dF": "F_avg_grad", "v_bar": "v_bar", "v_tar": "cm_target"}
    stored |= {"F_FM": "F_fm", "L_FM": "fm_per_sample", "L_norm": "cm_per_sample_unweighted"}
    for ours, theirs in stored.items():
        close(getattr(names["terms"], ours).detach(), TENSORS[f"facm_A_distill/{theirs}"])
    assert names["terms"].loss().total.item() == pytest.approx(LOSSES["facm_A_distill"]["total"], rel=1e-5)


def test_stage_1(page):
    names = after(page, "flow")
    assert names["anchored"].tolist() == [False] * 3 + [True] * 3
    close(names["flow"].F[3:].detach(), TENSORS["facm_A_distill/F_fm"][3:])
    close(names["flow"].F[:3].detach(), TENSORS["facm_A_distill/F_avg"][:3])


def test_mean_flow(page):
    names = after(page, "mean_flow")
    for ours, theirs in {"v": "v", "F": "F_avg", "dF": "F_avg_grad", "v_bar": "v_bar"}.items():
        close(getattr(names["mean_flow"], ours).detach(), TENSORS[f"meanflow_B_distill/{theirs}"])
    assert names["mean_flow"].loss().total.item() == pytest.approx(RIVALS["meanflow_B_distill"]["total"], rel=1e-5)


def test_scm(page):
    names = after(page, "scm")
    for ours, theirs in {"dF": "F_avg_grad", "v_tar": "cm_target", "error": "cm_per_sample_unweighted"}.items():
        close(getattr(names["scm"], ours).detach(), TENSORS[f"scm_A_distill_it2500/{theirs}"])
    (formula,) = re.findall(r"forms as `(.*?)`", PAGE)
    assert eval(formula, names).item() == pytest.approx(RIVALS["scm_A_distill_it2500"]["total"], rel=1e-5)


def test_the_run_is_the_recipe(page):
    run, recipe = after(page, "run")["run"], imagenet256_lightningdit_xl()
    assert run == dataclasses.replace(recipe, every=run.every)


def test_samplers(page):
    names = after(page, "x_heun")
    close(names["x"].double(), SAMPLES["cm_A_2step_cfg1.75"])
    close(names["x_euler"].double(), SAMPLES["euler_A_4_cfg1.75"])
    flow, steps = names["flow"], names["solvers"].shifted_times(4, shift=2.0)
    assert steps == pytest.approx([0, 0.4, 2 / 3, 6 / 7])
    assert torch.equal(names["x_heun"], names["solvers"].heun(flow, names["latents"], steps))


def test_files_that_the_page_names_exist():
    for name in re.findall(r"`(tests/[^`]+)`", PAGE):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(facm(?:\.[a-z_]+)+)`", PAGE):
        pkgutil.resolve_name(name)

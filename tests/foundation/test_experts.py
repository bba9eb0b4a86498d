"""Two experts in one model: which is asked, how each is guided, what is in memory; and folders with half a pair."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from facm.core.cond import repeated
from facm.flow import Sorted, TwoScales, Uniform
from facm.flow.guidance import NO_GUIDANCE, guided_velocity, velocity_field
from facm.flow.two_experts import just_above, of_high_noise
from facm.foundation import Captioned, DiffusersModel, FromExperts, LoRA, OtherExpert
from facm.foundation.captions.manifest import read_manifest
from facm.foundation.captions.origin import check_origin
from facm.foundation.experts.residence import Residence
from facm.foundation.experts.switch import TwoExperts
from facm.foundation.experts.teacher import Visiting, boundary_of
from facm.foundation.folder import SECOND, TRANSFORMER, load_pipeline, open_model
from facm.foundation.prepare.pipeline import prepare
from facm.foundation.prepare.sources import source_at
from facm.sampling.generate import noise
from facm.sampling.solvers import euler
from tests.foundation.conformance_parts import relative
from tests.foundation.prepared_parts import FAST, PROMPTS, contents, prompts_file
from tests.foundation.wan_parts import BOUNDARY, TOKENS, WIDTH, ZeroNull

SHAPE = (4, 1, 4, 4)


def experts(path, resident="both"):
    high, low = DiffusersModel(str(path)), DiffusersModel(str(path), part=SECOND)
    return FromExperts(high, low, resident).load().eval().requires_grad_(False)


def asked(n=4):
    rng = torch.Generator().manual_seed(0)
    x, embeddings = torch.randn(n, *SHAPE, generator=rng), torch.randn(n, TOKENS, WIDTH, generator=rng)
    return x, {"embeddings": embeddings}


class Constant(torch.nn.Module):
    """A network that notes its batches and returns one number."""

    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([float(value)]), requires_grad=False)
        self.asked = []

    def forward(self, x, t, cond=None):
        if x.is_meta:
            return x
        self.asked.append(t.tolist())
        return self.weight.expand_as(x) + 0 * x


def test_a_step_on_the_boundary_is_of_high_noise_as_in_the_pipeline():
    for boundary in (0.875, 0.9, 0.5, 0.123):
        steps = torch.tensor([boundary, boundary + 1e-3, boundary - 1e-3], dtype=torch.float32) * 1000
        theirs = steps >= boundary * 1000
        assert of_high_noise(1 - steps / 1000, boundary).tolist() == theirs.tolist() == [True, True, False]
        t_b = torch.tensor([1 - boundary])
        assert not of_high_noise(t_b, just_above(boundary)).any()
    assert of_high_noise(torch.tensor([0.1, 1.9, 0.2, 1.8, 1.0]), 0.875).tolist() == [True, True, False, False, False]
    assert 0.9999 < just_above(0.9999) < 1


def test_each_sample_is_asked_of_its_own_expert():
    x, cond = torch.randn(5, 2), torch.arange(5)
    high, low = Constant(1), Constant(2)
    both = TwoExperts(high, low, 0.5)
    t = torch.tensor([0.9, 0.1, 0.6, 0.2, 1.9])
    assert both(x, t, cond)[:, 0].tolist() == [2, 1, 2, 1, 1]
    assert [len(times) for times in high.asked + low.asked] == [3, 2]
    both(x, torch.full((5,), 0.75), cond)
    assert [len(times) for times in high.asked + low.asked] == [3, 2, 5]  # the other one is not asked at all
    assert both(x.to("meta"), t.to("meta"), cond.to("meta")).shape == x.shape


def test_samples_in_a_mixed_batch_are_as_alone(wan22):
    network, (x, cond) = experts(wan22), asked()
    t = torch.tensor([0.5, 0.05, 0.9, 0.1])
    model = open_model(wan22)
    with torch.no_grad():
        mixed = network(x, t, cond)
        for part, rows in ((TRANSFORMER, [1, 3]), (SECOND, [0, 2])):
            own = DiffusersModel(str(wan22), part=part).build()
            alone = own(x[rows], t[rows], {"embeddings": cond["embeddings"][rows]})
            torch.testing.assert_close(mixed[rows], alone, rtol=0, atol=1e-6)
    assert model.boundary == BOUNDARY == boundary_of(str(wan22))


@pytest.mark.parametrize(("guided", "shift"), [(False, 7.0), (True, 7.0)])
def test_the_teacher_that_switches_is_the_pipeline(wan22, guided, shift):
    """Shift 7 puts the second of four steps exactly on the boundary."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    model = open_model(wan22)
    pipe = load_pipeline(model, (*model.encoders, *model.transformers, "vae"))
    steps = 4
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=None)
    x_0 = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    how = (
        {"guidance_scale": 3.0, "guidance_scale_2": 2.0, "negative_prompt": ["bad"] * 2}
        if guided
        else {"guidance_scale": 1.0}
    )
    theirs = pipe(
        prompt=["a fox", "snow"],
        height=32,
        width=32,
        num_frames=1,
        num_inference_steps=steps,
        latents=x_0,
        output_type="latent",
        **how,
    )[0]
    times = [1 - float(sigma) for sigma in pipe.scheduler.sigmas[:-1]]
    high = [t for t in times if bool(of_high_noise(torch.tensor([t]), BOUNDARY))]
    assert 0 < len(high) < len(times)
    with torch.no_grad():
        cond = model.family.encode(pipe, ["a fox", "snow"])
        null = model.family.encode(pipe, ["bad"], negative=True)
    guidance = TwoScales(3.0, scale_2=2.0, boundary=BOUNDARY) if guided else NO_GUIDANCE
    field = velocity_field(experts(wan22), lambda t: {"t": t}, cond, Null(null), guidance)
    assert relative(euler(field, x_0, times), theirs) < 1e-6


SCALES = replace(FAST, steps=3, guidance_scale_2=2.0)


@pytest.fixture(scope="module")
def by_experts(wan22, tmp_path_factory):
    """Five prompts, of which the two experts made latents."""
    root = tmp_path_factory.mktemp("experts")
    prepare(source_at(prompts_file(root)), wan22, root / "data", SCALES)
    return root / "data"


def test_the_experts_make_what_their_pipeline_makes(wan22, by_experts):
    pipe = load_pipeline(open_model(wan22), ("text_encoder", "transformer", "transformer_2", "vae"))
    made = pipe(
        prompt=list(PROMPTS),
        negative_prompt="bad",
        height=32,
        width=32,
        num_frames=1,
        num_inference_steps=3,
        guidance_scale=3.0,
        guidance_scale_2=2.0,
        latents=noise(FAST.seed, range(5), 0, SHAPE),
        output_type="latent",
    ).frames
    batch = Captioned(str(by_experts)).open().read(np.arange(5))
    torch.testing.assert_close(batch.x_1, made, rtol=1e-5, atol=1e-5)
    manifest = read_manifest(by_experts)
    assert {"transformer", "transformer_2"} < set(manifest.hashes)
    assert (manifest.teacher.guidance_scale_2, manifest.teacher.boundary) == (2.0, BOUNDARY)
    check_origin(by_experts, open_model(wan22))


def test_memory_for_one_expert_makes_the_same_data(wan22, by_experts, tmp_path):
    again = prepare(source_at(prompts_file(tmp_path)), wan22, tmp_path / "data", replace(SCALES, resident="one"))
    assert again.made == 5
    assert contents(tmp_path / "data")["samples_00000.safetensors"] == contents(by_experts)["samples_00000.safetensors"]


@pytest.mark.parametrize(
    ("second", "first", "message"),
    [
        (math.nan, 3.0, "guidance_scale_2 = nan, expected a number above 0"),
        (2.0, 1.0, "guidance_scale = 1.0 with guidance_scale_2 = 2.0: WanPipeline guides neither"),
    ],
)
def test_scales_that_the_pipeline_would_not_follow(wan22, tmp_path, second, first, message):
    options = replace(FAST, guidance_scale=first, guidance_scale_2=second)
    with pytest.raises(ValueError, match=message):
        prepare(source_at(prompts_file(tmp_path)), wan22, tmp_path / "data", options)


def test_a_second_scale_needs_a_second_expert(wan, tmp_path):
    with pytest.raises(ValueError, match=r"guidance_scale_2 = 2.0, and .* has one transformer; expected None"):
        prepare(source_at(prompts_file(tmp_path)), wan, tmp_path / "data", replace(FAST, guidance_scale_2=2.0))


class Null(ZeroNull):
    def __init__(self, null):
        object.__setattr__(self, "stored", null)

    def null(self, cond):
        return repeated(self.stored, len(cond["embeddings"]))


def test_each_expert_has_its_own_guidance():
    guidance = TwoScales(4.0, scale_2=1.0, boundary=0.75)
    t = torch.tensor([0.1, 0.25, 0.5])
    assert guidance.at(t, torch.zeros(3, 2)).tolist() == [[4.0], [4.0], [1.0]]
    assert guidance.active(t).tolist() == [True, True, False]
    assert guidance.strongest == 4.0
    assert TwoScales(1.0, scale_2=3.0).active(torch.tensor([0.1, 0.25])).tolist() == [False, True]

    class Zeros(ZeroNull):
        def null(self, cond):
            return torch.zeros_like(cond)

    guidance = TwoScales(4.0, scale_2=2.0, boundary=0.75)
    v = guided_velocity(
        lambda x, t, cond: cond[:, None].expand_as(x),
        lambda t: {"t": t},
        torch.zeros(3, 2),
        torch.tensor([0.5, 0.1, 0.9]),
        torch.tensor([1.0, 1.0, 10.0]),
        Zeros(),
        guidance,
    )
    assert v.tolist() == [[2.0, 2.0], [4.0, 4.0], [20.0, 20.0]]


def test_sorted_times_are_the_same_times():
    uniform = Uniform().sample(9, torch.Generator().manual_seed(3))
    ours = Sorted(Uniform()).sample(9, torch.Generator().manual_seed(3))
    assert ours.tolist() == sorted(uniform.tolist())


def test_one_expert_is_brought_at_a_time():
    networks = {"high": Constant(1), "low": Constant(2)}
    residence = Residence(networks)
    both = TwoExperts(networks["high"], networks["low"], 0.5, residence)
    assert both.to("meta") is both  # nothing is moved before it is asked
    x = torch.zeros(2, 2)
    for times, there, moves in (([0.1, 0.2], "high", 1), ([0.1, 0.9], "low", 2), ([0.6, 0.9], "low", 2)):
        both(x, torch.tensor(times))
        assert (residence.there, residence.moves) == (there, moves)
    residence.leave()
    assert residence.there is None
    assert [float(network.weight) for network in networks.values()] == [1, 2]


def test_one_resident_expert_gives_the_same_numbers(wan22):
    (x, cond), t = asked(), torch.tensor([0.5, 0.05, 0.9, 0.1])
    one = experts(wan22, "one")
    with torch.no_grad():
        assert torch.equal(one(x, t, cond), experts(wan22)(x, t, cond))
    assert one.residence.moves == 2


def test_a_visitor_takes_the_place_of_what_it_displaces_and_gives_it_back():
    class Fails(Constant):
        def forward(self, x, t, cond=None):
            if float(t) == 0.5:
                raise RuntimeError("on purpose")
            there.append((own.data_ptr(), float(own)))
            return super().forward(x, t, cond)

    own, there = torch.nn.Parameter(torch.tensor(3.0), requires_grad=False), []
    at_first = own.data_ptr()
    visiting = Visiting(Fails(1), [own])
    visiting(torch.zeros(1, 2), torch.tensor([0.1]))
    visiting(torch.zeros(1, 2), torch.tensor([0.2]))
    (first, value), (second, _) = there
    assert first == second != at_first  # one copy of it stays in host memory
    assert own.data_ptr() != first
    with pytest.raises(RuntimeError, match="on purpose"):
        visiting(torch.zeros(1, 2), torch.tensor([0.5]))
    assert own.data_ptr() != first
    assert float(own) == value == 3
    assert visiting.residence.there is None


@pytest.mark.parametrize(("resident", "part"), [("one", SECOND), ("both", TRANSFORMER)])
def test_the_students_own_base_is_one_of_the_experts(wan22, resident, part):
    other = SECOND if part == TRANSFORMER else TRANSFORMER
    student = DiffusersModel(str(wan22), LoRA(2), smooth=50.0, part=part).build()
    for name, parameter in student.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    teacher = OtherExpert(DiffusersModel(str(wan22), part=other), resident)
    loaded = teacher.load()
    both = teacher.beside(student, loaded)
    (x, cond), t = asked(), torch.tensor([0.5, 0.05, 0.9, 0.1])
    with torch.no_grad():
        want = experts(wan22)(x, t, cond)
        assert relative(both(x, t, cond), want) < 1e-6
        assert relative(student(x, t, cond), want) > 1e-2
    if resident == "one":
        assert isinstance(loaded, Visiting)
        visiting = both.low if part == TRANSFORMER else both.high
        assert (visiting.residence.moves, visiting.residence.there) == (1, None)
    own = {id(p) for p in student.parameters()}
    assert not own & {id(p) for p in loaded.parameters()}
    with pytest.raises(ValueError, match="of a student of the same part, expected the other"):
        OtherExpert(DiffusersModel(str(wan22), part=part)).beside(student, loaded)


def changed(wan22, tmp_path, **entries):
    path = tmp_path / "model"
    shutil.copytree(wan22, path)
    index = json.loads((path / "model_index.json").read_text()) | entries
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"transformer_2": [None, None]},
            "one of the two experts is missing",
        ),
        ({"transformer": [None, None]}, "names no transformer, expected one"),
        ({"boundary_ratio": 1.0}, "boundary_ratio = 1.0, expected a number between 0 and 1"),
        ({"boundary_ratio": 0}, "boundary_ratio = 0, expected a number between 0 and 1"),
        ({"boundary_ratio": None}, "boundary_ratio = None, expected a number between 0 and 1"),
        ({"boundary_ratio": True}, "boundary_ratio = True, expected a number between 0 and 1"),
        (
            {"transformer_2": ["diffusers", "FluxTransformer2D"]},
            "transformer_2 = Flux",
        ),
    ],
)
def test_half_a_pair_and_a_boundary_that_is_none_are_refused(wan22, tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        open_model(changed(wan22, tmp_path, **entries))


def test_experts_of_two_sizes_are_refused(wan22, tmp_path):
    path = changed(wan22, tmp_path)
    config = json.loads((path / "transformer_2" / "config.json").read_text()) | {"num_layers": 3}
    (path / "transformer_2" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="transformer_2 has num_layers = 3, transformer has 2; expected two"):
        open_model(path)


def test_a_model_of_one_transformer_has_no_experts(wan):
    assert open_model(wan).boundary is None
    with pytest.raises(ValueError, match="has one transformer, expected a model of two experts"):
        boundary_of(str(wan))
    with pytest.raises(ValueError, match=r"part = 'transformer_2', and .* has one transformer; expected 'transformer'"):
        DiffusersModel(str(wan), part=SECOND).build()


def test_teachers_are_refused_where_they_are_no_pair():
    high, low = DiffusersModel("a"), DiffusersModel("a", part=SECOND)
    for wrong, message in (
        ((low, low), "high = .*expected part = 'transformer'"),
        ((high, high), "low = .*expected part = 'transformer_2'"),
        ((high, DiffusersModel("b", part=SECOND)), "low = .*expected the other expert of path = 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            FromExperts(*wrong)
    with pytest.raises(ValueError, match=r"model = .*expected a model without lora"):
        OtherExpert(DiffusersModel("a", LoRA(2)))

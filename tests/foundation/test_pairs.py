"""Students of two experts: halves that make a pair, and one for all times; in diffusers' own pipeline, and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from facm.core.objective import NetworkInterface
from facm.flow import ExpandedInterval, Shifted, Sorted, TwoScales
from facm.flow.guidance import Guidance
from facm.flow.phases import WHOLE, Phases
from facm.flow.two_experts import just_above
from facm.foundation import DiffusersModel, FromExperts, FromModel, LoRA, OtherExpert, OwnBase
from facm.foundation.experts.pair import check_whole, pair_of
from facm.foundation.experts.switch import TwoExperts
from facm.foundation.export.diffusers_folder import write_folder
from facm.foundation.export.experts import student_of_pair
from facm.foundation.export.lora_file import write_lora
from facm.foundation.export.lowrank import added
from facm.foundation.export.schedule import check_steps, new_scheduler
from facm.foundation.export.student import student_of
from facm.foundation.folder import SECOND, TRANSFORMER, open_model
from facm.foundation.network import DiffusersNetwork
from facm.foundation.prepare.pipeline import Options, prepare
from facm.foundation.prepare.sources import source_at
from facm.pretrained.trained import Trained
from facm.recipes.text_to_image import distill, finetune
from facm.recipes.wan22 import wan22_t2i
from facm.sampling import default_method
from facm.sampling.solvers import consistency, phased, uniform_times
from tests.foundation.conformance_parts import relative
from tests.foundation.wan_parts import BOUNDARY, Prompted, ZeroNull

T_B = 1 - BOUNDARY
PROMPTS = ["a red fox", "snow"]
SHAPE = (4, 1, 4, 4)


def trained(model: Path, part: str, bounds: tuple[float, ...], path: str, **config: Any) -> Trained:
    """As if trained: adapters with random weights."""
    made = DiffusersModel(str(model), LoRA(2), smooth=200.0, part=part, **config)  # type: ignore[arg-type]
    network = made.build()
    rng = torch.Generator().manual_seed(len(path))
    for name, parameter in network.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    interface = NetworkInterface(ZeroNull(), ExpandedInterval(), learns_shortcut=True, bounds=bounds)
    data: Any = Prompted()
    network.eval().requires_grad_(False)
    return Trained(network, made, interface, data, Path(path), "EMA 0.05", 0.05, 64, f"{len(path):064x}")


@pytest.fixture(scope="module")
def halves(wan22: Path) -> tuple[Trained, Trained]:
    return trained(wan22, SECOND, (T_B, 1.0), "runs/low"), trained(wan22, TRANSFORMER, (0.0, T_B), "runs/high")


@pytest.fixture(scope="module")
def one(wan22: Path) -> Trained:
    return trained(wan22, SECOND, WHOLE, "runs/one")


@pytest.fixture(scope="module")
def pair(halves: tuple[Trained, Trained], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair as a folder that diffusers opens."""
    folder = tmp_path_factory.mktemp("exported")
    write_folder(student_of_pair(pair_of(*halves)), folder / "pair", 2)
    return folder / "pair"


def opened(path: Path, **parts: Any) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(path, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(seed: int = 5) -> torch.Tensor:
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))


def by_pipeline(pipe: Any, n: int) -> torch.Tensor:
    torch.manual_seed(0)
    made = pipe(
        prompt=PROMPTS,
        height=32,
        width=32,
        num_frames=1,
        num_inference_steps=n,
        guidance_scale=1.0,
        latents=noise(),
        output_type="latent",
    )[0]
    assert isinstance(made, torch.Tensor)
    return made


def field(pipe: Any, network: Any) -> Any:
    with torch.no_grad():
        cond = open_model(Path(pipe.config._name_or_path)).family.encode(pipe, PROMPTS)
    return lambda x, t: network(x, t, cond)


def test_a_pair_is_asked_phase_by_phase(halves: tuple[Trained, Trained]) -> None:
    low, high = halves
    pair = pair_of(low, high)
    assert pair.interface.bounds == (0.0, T_B, 1.0)
    assert default_method(pair.interface, 4).check(pair.interface) is None
    assert (pair.path, pair.images_seen) == (low.path, 64)
    assert "runs/high" in pair.which
    assert high.checkpoint_sha256[:16] in pair.which
    x, cond = noise(), {"embeddings": torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))}
    for t, half in ((0.0, high), (0.12, high), (T_B, low), (0.5, low), (2 - T_B, low), (1.9, high)):
        time = torch.full((2,), t)  # the step on the boundary is of the low-noise half
        assert torch.equal(pair.network(x, time, cond), half.network(x, time, cond)), t


def test_one_step_each_is_what_the_stock_pipeline_does(pair: Path, halves: tuple[Trained, Trained]) -> None:
    pipe = opened(pair)
    assert pipe.scheduler.config.stochastic_sampling is False
    low, high = (DiffusersNetwork(t, open_model(pair).family) for t in (pipe.transformer_2, pipe.transformer))
    network = TwoExperts(high, low, just_above(BOUNDARY))
    ours = phased(field(pipe, network), noise(), [0.0, T_B], (0.0, T_B, 1.0))
    assert relative(by_pipeline(pipe, 2), ours) < 3e-6
    trained_ones = phased(field(pipe, pair_of(*halves).network), noise(), [0.0, T_B], (0.0, T_B, 1.0))
    assert relative(ours, trained_ones) < 1e-5
    assert open_model(pair).boundary == just_above(BOUNDARY)


@pytest.mark.parametrize("n", [2, 5])
def test_more_steps_are_what_this_packages_scheduler_does(pair: Path, n: int) -> None:
    pipe = opened(pair)
    scheduler = new_scheduler("WanPipeline", n, "facm", 1000, (0.0, T_B, 1.0))
    pipe.scheduler = type(scheduler).from_config(scheduler.config)
    low, high = (DiffusersNetwork(t, open_model(pair).family) for t in (pipe.transformer_2, pipe.transformer))
    made = by_pipeline(pipe, n)
    torch.manual_seed(0)
    method = default_method(NetworkInterface(ZeroNull(), learns_shortcut=True, bounds=(0.0, T_B, 1.0)), n)
    times = method.schedule()  # type: ignore[attr-defined]
    ours = phased(
        field(pipe, TwoExperts(high, low, just_above(BOUNDARY))),
        noise(),
        times,
        (0.0, T_B, 1.0),
        lambda _: torch.randn(2, *SHAPE),
    )
    assert torch.equal(made, ours)


def test_a_folder_that_names_this_packages_scheduler_opens(halves: tuple[Trained, Trained], tmp_path: Path) -> None:
    write_folder(student_of_pair(pair_of(*halves)), tmp_path / "pair", 4, "facm")
    pipe = opened(tmp_path / "pair")
    assert type(pipe.scheduler).__name__ == "PhasedScheduler"
    pipe.scheduler.set_timesteps(4)
    assert pipe.scheduler.sigmas.tolist() == pytest.approx([1, 1 - T_B / 2, 1 - T_B, (1 - T_B) / 2, 0])
    assert "PhasedScheduler" in (tmp_path / "pair" / "README.md").read_text()


def test_adapters_of_a_pair_are_two_files(wan22: Path, halves: tuple[Trained, Trained], tmp_path: Path) -> None:
    student = student_of_pair(pair_of(*halves))
    write_lora(student, {part: added(network) for part, network in student.networks.items()}, tmp_path / "lora")
    said = (tmp_path / "lora" / "README.md").read_text()
    pipe = opened(wan22)
    for line in said.splitlines():
        if line.startswith(("pipe.load_lora_weights", "pipe.register_to_config")):
            exec(line.replace('"lora/', f'"{tmp_path}/lora/'))
    assert pipe.config.boundary_ratio == just_above(BOUNDARY)
    for transformer, half in ((pipe.transformer_2, halves[0]), (pipe.transformer, halves[1])):
        x, time, cond = noise(), torch.tensor([0.1, 0.7]), {"embeddings": torch.randn(2, 6, 16)}
        with torch.no_grad():
            got = DiffusersNetwork(transformer, student.model.family)(x, time, cond)
            assert relative(got, half.network(x, time, cond)) < 1e-5


def test_one_student_is_a_pipeline_of_one_transformer(wan22: Path, one: Trained, tmp_path: Path) -> None:
    student = student_of(one)
    write_folder(student, tmp_path / "one", 2)
    assert not (tmp_path / "one" / SECOND).exists()
    model = open_model(tmp_path / "one")
    assert (model.boundary, model.transformers) == (None, (TRANSFORMER,))
    pipe = opened(tmp_path / "one")
    assert (pipe.transformer_2, pipe.config.boundary_ratio) == (None, None)
    made = by_pipeline(pipe, 2)
    torch.manual_seed(0)
    ours = consistency(field(pipe, one.network), noise(), uniform_times(2), lambda _: torch.randn(2, *SHAPE))
    assert relative(made, ours) < 1e-5
    write_lora(student, {TRANSFORMER: added(student.network)}, tmp_path / "lora")
    lines = (tmp_path / "lora" / "README.md").read_text().splitlines()
    assert any(f'subfolder="{SECOND}"' in line for line in lines)  # what the adapters were trained on
    assert load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize(
    ("pipeline", "bounds", "n", "kind", "message"),
    [
        ("WanPipeline", (0.0, T_B, 1.0), 1, "facm", "num_steps = 1 with a student of 2 phases, expected 2 to 8"),
        ("WanPipeline", (0.0, T_B, 1.0), 4, "stock", "expected num_steps = 2, a step in each phase, or scheduler"),
        ("WanPipeline", (0.0, T_B, 1.0), 4, "flow-jump", "does not jump to data from all noise levels; expected sched"),
        ("WanPipeline", (0.0, 0.1, 0.3, 1.0), 3, "stock", r"cannot take these steps; expected scheduler = 'facm'"),
        ("ZImagePipeline", (0.0, T_B, 1.0), 2, "stock", r"cannot take these steps; expected scheduler = 'facm'"),
    ],
)
def test_steps_that_a_scheduler_does_not_have(
    pipeline: str, bounds: tuple[float, ...], n: int, kind: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_steps(n, kind, pipeline, bounds)


def test_steps_that_a_scheduler_has() -> None:
    for pipeline, bounds, n in (
        ("WanPipeline", (0.0, 0.1, 0.2, 1.0), 3),
        ("ZImagePipeline", (0.0, 0.25, 0.5, 0.75, 1.0), 4),
        ("WanPipeline", WHOLE, 4),
    ):
        check_steps(n, "stock", pipeline, bounds)
    scheduler = new_scheduler("WanPipeline", 3, "stock", 1000, (0.0, 0.1, 0.2, 1.0))
    scheduler.set_timesteps(3)
    assert scheduler.sigmas.tolist() == pytest.approx([1.0, 0.9, 0.8, 0.0])


# what is no pair


def test_halves_and_whole_students_are_told_apart(halves: tuple[Trained, Trained], one: Trained) -> None:
    low, high = halves
    for wrong, message in (
        ((one, high), "runs/one is one student of all times, expected the low-noise half"),
        ((low, one), "high_noise = runs/one is one student of all times, expected the high-noise half"),
        ((high, low), "runs/high is the high-noise half of a pair, expected the low-noise half"),
        ((low, low), "high_noise = runs/low is the low-noise half of a pair, expected the high-noise half"),
    ):
        with pytest.raises(ValueError, match=message):
            pair_of(*wrong)
    check_whole(one)
    for half in halves:
        with pytest.raises(ValueError, match="half of a pair, which makes no samples alone"):
            check_whole(half)


def test_halves_that_do_not_belong_together(wan: Path, wan22: Path, halves: tuple[Trained, Trained]) -> None:
    low, high = halves
    other = dataclasses.replace(low.interface, bounds=(0.1, 1.0))
    with pytest.raises(ValueError, match=r"high_noise = runs/high jumps to t = 0.125, and runs/low begins at t = 0.1;"):
        pair_of(dataclasses.replace(low, interface=other), high)
    same = dataclasses.replace(high, config=low.config)
    with pytest.raises(ValueError, match="are both of transformer_2, expected one of each"):
        pair_of(low, same)
    wider = dataclasses.replace(high, data=Prompted(shape=(8, 1, 4, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="make samples of other channels"):
        pair_of(low, wider)


# the recipes


def test_students_of_two_experts(wan22: Path) -> None:
    model = str(wan22)
    found = {name: distill(model, "nowhere", 2, student=name, guidance_scale_2=2.0, shift=3.0) for name in STUDENTS}
    for name, run in found.items():
        part, bounds, guided = STUDENTS[name]
        assert run.network.part == part
        assert run.network.sha256 == open_model(wan22).identity(part)[part]
        assert run.objective.phases == Phases(bounds)
        assert run.objective.velocity.guidance.strongest == guided
    one = found["one"]
    assert isinstance(one.teacher, OtherExpert)
    assert one.teacher.model.part == TRANSFORMER
    assert one.objective.velocity.guidance == TwoScales(4.0, scale_2=2.0, boundary=BOUNDARY)
    assert isinstance(one.objective.time, Sorted)
    assert isinstance(found["low-noise"].teacher, OwnBase)
    assert isinstance(found["low-noise"].objective.time, Shifted)
    assert found["low-noise"].objective.time.shift == pytest.approx(1 / 3)
    whole = distill(model, "nowhere", student="high-noise")
    assert isinstance(whole.teacher, FromModel)
    assert whole.teacher.model.part == TRANSFORMER
    both = distill(model, "nowhere", resident="one").teacher
    assert isinstance(both, FromExperts)
    assert (both.resident, both.high.part, both.low.part) == ("one", TRANSFORMER, SECOND)


STUDENTS = {
    "one": (SECOND, WHOLE, 4.0),
    "high-noise": (TRANSFORMER, (0.0, T_B), 4.0),
    "low-noise": (SECOND, (T_B, 1.0), 2.0),
}


def test_students_learn_the_guidance_that_their_data_were_made_with(wan: Path, wan22: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\na hen\n")
    for second, learned in ((1.5, 1.5), (None, 2.5)):
        data = tmp_path / f"second {second}"
        options = Options(size=(32,), steps=1, guidance_scale=2.5, guidance_scale_2=second)
        prepare(source_at(tmp_path / "prompts.txt"), wan22, data, options)
        for recipe in (distill, wan22_t2i):
            one = recipe(str(wan22), str(data), lora_rank=2).objective
            assert one.velocity.guidance == TwoScales(2.5, scale_2=learned, boundary=BOUNDARY)
            other = recipe(str(wan22), str(data), lora_rank=2, student="low-noise", guidance_scale_2=3.5).objective
            assert other.velocity.guidance == Guidance(3.5, low=0.0)  # which is said
    with pytest.raises(ValueError, match=r"was prepared with the transformer_2 of another model, and .* has none"):
        distill(str(wan), str(data))


def test_the_recipe_of_wan_is_shown_before_there_is_a_model() -> None:
    run = wan22_t2i()
    assert run.objective.velocity.guidance == TwoScales(4.0, scale_2=3.0, boundary=0.875)
    assert isinstance(run.teacher, OtherExpert)
    assert wan22_t2i(student="low-noise").objective.velocity.guidance.strongest == 3.0
    assert wan22_t2i(student="high-noise").objective.phases.bounds == (0.0, 0.125)


def test_what_no_student_can_be(wan: Path, wan22: Path) -> None:
    for model, wrong, message in (
        (wan22, {"student": "both"}, "student = 'both', expected one of one, high-noise, low-noise"),
        (wan, {"student": "high-noise"}, "has one transformer: expected 'one', 0 and 'both'"),
        (wan, {"guidance_scale_2": 3.0}, "guidance_scale_2 = 3, .* has one transformer"),
        (wan22, {"teacher": "runs/x"}, "teacher = 'runs/x' with a model of two experts, expected none"),
        (wan22, {"guidance_scale": 1.0, "guidance_scale_2": 3.0}, "guides neither of its experts"),
        (wan22, {"shift": 0.0}, "shift = 0.0, expected a number above 0"),
        (wan22, {"resident": "none"}, "resident = 'none', expected one of 'both', 'one'"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(str(model), "nowhere", **wrong)  # type: ignore[arg-type]
    for model, expert, message in (
        (wan22, "", "has two experts, each of which .*: expected expert = 'high-noise' or"),
        (wan22, "one", "expert = 'one', expected high-noise or low-noise"),
        (wan, "low-noise", "expert = 'low-noise' with .* which has one transformer, expected none"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(str(model), "nowhere", expert=expert)


def test_an_expert_is_fine_tuned_at_its_own_times(wan22: Path) -> None:
    for expert, part, low, high in (("high-noise", TRANSFORMER, 0, 0.125), ("low-noise", SECOND, 0.125, 1)):
        run = finetune(str(wan22), "nowhere", expert=expert)
        assert run.network.part == part
        assert run.objective.bounds == (low, high)
        times = run.objective.phases.times(run.objective.time).sample(1000, torch.Generator().manual_seed(0))
        assert low <= times.min() < low + 0.01
        assert high - 0.01 < times.max() <= high

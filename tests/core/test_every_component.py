"""Every component of the package, every field, and values that a stranger's file or a slip may put there.

A value is either taken, with a meaning that its annotation states, or refused by the one error that names the
component, the field, the value and what was expected. Nothing else is ever raised, and nothing hangs.
"""

import dataclasses
import importlib
import itertools
import json
import math
import typing

import pytest
import torch

from facm import FACM, AdamW, FlowMatching, FromRun, Labels, Run
from facm.core.component import ComponentError
from facm.core.public_names import EXPORTS, PUBLIC
from facm.core.serialize import from_json, to_json
from facm.data import Checkerboard, TarPictures
from facm.flow import L2, One, Uniform
from facm.foundation import DiffusersModel
from facm.latents import VAVAE
from facm.networks import MLP
from facm.objectives import DoublingSteps, OverStep, ShrinkingGap
from facm.runs import Constant
from facm.sampling import Euler

NUMBERS = [-1, 0, 1, 2, 3, 0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 10**7, 10**9, 10**400]
NO_NUMBERS = [None, True, False, "", "x", "\x1b[2J\n", [], {}, [1], [0], [-1], [math.nan], ["x"], [1] * 2000, [None]]
OTHERS = [
    *(Labels(3), L2(), One(), Uniform(), OverStep(), Constant(), AdamW(), MLP(2, 8, 1), Checkerboard(), Euler()),
    *(TarPictures("x"), VAVAE("x"), FromRun("x"), FACM(Labels(3)), ShrinkingGap(), MLP, L2, torch.zeros(1)),
]
VALUES = [*NUMBERS, *NO_NUMBERS, *OTHERS]

REQUIRED = {
    "condition": Labels(3),
    "schedule": ShrinkingGap(),
    "classes": 10,
    "path": "x",
    "folder": "x",
    "weights": "x",
    "encoder": "x",
    "decoder": "x",
    "size": 32,
    "distance": L2(),
    "weight": 1.0,
    "shape": (3, 8, 8),
    "images": 1000,
    "network": MLP(2, 8, 1),
    "data": Checkerboard(),
    "objective": FlowMatching(Labels(3)),
    "model": DiffusersModel("x"),
    "high": DiffusersModel("x"),
    "low": DiffusersModel("x", part="transformer_2"),
    "time": Uniform(),
    "kind": "x",
    "tensors": "x",
    "sha256": "x",
}
"""A value for every field without a default."""
NEED_FILES = ("AdamW", "DiffusersModel", "GivenNetwork", "StableDiffusionVAE", "TAEF2", "VAVAE")
"""Components that are built of a network or of files."""
SMALL = {
    "LightningDiT": {"input_size": 8, "in_channels": 4, "hidden_size": 48, "depth": 1, "num_heads": 3},
    "DDPMpp": {"size": 8, "channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)},
    "VAVAE": {"weights": "x", "ch": 32, "ch_mult": (1, 2), "attention": (2,)},
}
"""Fields that keep a component small, so that one of them may be large."""

COMPONENTS = {name: getattr(importlib.import_module(package), name) for package, ns in EXPORTS.items() for name in ns}


def fields_of(cls):
    return [field for field in dataclasses.fields(cls) if field.init]


def base(cls):
    """The fields of an ordinary component of this class."""
    own = SMALL.get(cls.__name__, {})
    required = [f.name for f in fields_of(cls) if f.default is dataclasses.MISSING and f.name not in own]
    return {name: REQUIRED[name] for name in required} | own


def cases(names):
    return [(name, field.name) for name in names for field in fields_of(COMPONENTS[name])]


def may_be(cls, name):
    """Which kinds of values the annotation of a field admits: the oracle, without ranges."""
    hints, found = [typing.get_type_hints(cls, include_extras=False)[name]], set()
    while hints:
        hint = hints.pop()
        found.update(typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ())
        found.add(typing.get_origin(hint) or hint)
        if typing.get_origin(hint) is not tuple:
            hints += [part for part in typing.get_args(hint) if isinstance(part, type) or typing.get_origin(part)]
    return found


def is_admitted(value, kinds):
    if typing.Any in kinds or (isinstance(value, int | str) and any(value is kind for kind in kinds)):
        return True
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int | float):
        limit = math.isfinite(value) if isinstance(value, float) else True
        return (int in kinds and isinstance(value, int)) or (float in kinds and (limit or value == math.inf))
    plain = {str: str, list: tuple, dict: dict, type(None): type(None)}
    if type(value) in plain:
        return plain[type(value)] in kinds
    return any(kind in type(value).__mro__ for kind in kinds)


@pytest.mark.parametrize(("component", "field"), cases(COMPONENTS), ids=str)
def test_a_value_is_taken_for_what_it_says_or_refused_by_name(component, field):
    cls = COMPONENTS[component]
    kinds, taken = may_be(cls, field), 0
    for value in VALUES:
        try:
            made = cls(**{**base(cls), field: value})
        except ComponentError as error:
            text = str(error)
            # another field's is the name where two do not fit together
            assert any(text.startswith(f"{component}: {f.name} = ") for f in fields_of(cls)) or "its sizes" in text
            assert ", expected " in text
            assert text.isprintable()
            assert len(text) < 400
            continue
        taken += 1
        assert is_admitted(value, kinds), f"{component}({field}={value!r})"
        now = getattr(made, field)
        assert now is value or now == (tuple(value) if isinstance(value, list) else value)
        if isinstance(value, int | float | str | list | None):
            again = from_json(json.loads(json.dumps(to_json(made))))
            assert again == made
        if hasattr(cls, "build") and component not in (
            "AdamW",
            "DiffusersModel",
            "GivenNetwork",
            "StableDiffusionVAE",
            "TAEF2",
            "VAVAE",
        ):
            with torch.device("meta"):
                made.build()
    assert taken < len(VALUES)  # every field refuses something
    cls(**base(cls))


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_recorded_component_with_an_unknown_or_missing_field_is_refused_by_name(component):
    cls = COMPONENTS[component]
    recorded = to_json(cls(**base(cls)))
    assert from_json(recorded) == cls(**base(cls))
    with pytest.raises(ComponentError, match=rf"^{component}: the field 'zzz' is unknown, expected (the fields|no)"):
        from_json({**recorded, "zzz": 1})
    for field in fields_of(cls):
        if field.default is dataclasses.MISSING:
            without = {key: value for key, value in recorded.items() if key != field.name}
            with pytest.raises(ComponentError, match=rf"^{component}: the field '{field.name}' is missing, expected"):
                from_json(without)


KINDS = {
    "network": (
        Run,
        {
            "EDM",
            "DDPMpp",
            "Foreign",
            "LightningDiT",
            "MLP",
            "SimpleEDM",
            "VariancePreserving",
            "DiffusersModel",
            "GivenNetwork",
        },
    ),
    "teacher": (Run, {"FromExperts", "FromRun", "FromFile", "FromModel", "GivenWeights", "OtherExpert", "OwnBase"}),
    "objective": (
        Run,
        {
            *("AlignYourFlow", "ContinuousCM", "DiscreteCM", "FACM", "FlowMatching", "IMM", "MeanFlow", "SCM"),
            *("ShortcutModel", "TRACT"),
        },
    ),
    "optimizer": (Run, {"AdamW"}),
    "ema": (Run, {"PowerEMA"}),
    "every": (Run, {"Intervals"}),
    "decay": (AdamW, {"Constant", "CosineDecay"}),
    "time": (FACM, {"ArctanLogNormal", "LogitNormal", "Shifted", "Sorted", "Squeezed", "Uniform"}),
    "phases": (FACM, {"Phases"}),
    "task": (FACM, {"AuxiliaryTime", "ExpandedInterval"}),
    "anchor": (FACM, {"L2", "L2Cosine", "LPIPS", "NormL2", "PseudoHuber", "Scaled"}),
    "alpha": (FACM, {"Cosine", "One", "OneMinusPower"}),
    "derivative": (FACM, {"Chain", "FiniteDifference", "NoGraph", "OpLevel", "WholeNetwork"}),
    "velocity": (FACM, {"DataVelocity", "TeacherVelocity"}),
    "condition": (FACM, {"Captions", "Labels", "Unconditional"}),
    "schedule": (COMPONENTS["DiscreteCM"], {"DoublingSteps", "ShrinkingGap"}),
    "weight": (COMPONENTS["DiscreteCM"], {"OverStep", "SignalToNoise"}),
    "autoencoder": (COMPONENTS["LatentSpace"], {"StableDiffusionVAE", "TAEF2", "VAVAE"}),
}


@pytest.mark.parametrize("field", KINDS)
def test_a_field_takes_its_own_kind_of_component_and_no_other(field):
    """Also where another kind has the same methods: an optimiser has a build() as a network has."""
    cls, right = KINDS[field]
    guided = {"velocity": COMPONENTS["TeacherVelocity"](COMPONENTS["Guidance"](1.0))} if cls is FACM else {}
    for name, other in COMPONENTS.items():
        fields = {**base(cls), **guided, field: other(**base(other))}
        if name in right:
            cls(**fields)
        else:
            with pytest.raises(ComponentError, match=rf"^{cls.__name__}: {field} = "):
                cls(**fields)


@pytest.mark.parametrize(
    ("component", "fields", "message"),
    [
        ("LightningDiT", {"num_heads": 5}, "hidden_size = 48, expected a multiple of num_heads = 5"),
        ("LightningDiT", {"patch_size": 3}, "input_size = 8, expected a multiple of patch_size = 3"),
        ("LightningDiT", {"hidden_size": 65536, "num_heads": 64, "depth": 512}, "its sizes together make about"),
        ("LightningDiT", {"input_size": 65536}, "input_size = 65536, expected at most 1048576 patches"),
        (
            "LightningDiT",
            {"hidden_size": 4, "num_heads": 1, "mlp_ratio": 0.1},
            "mlp_ratio = 0.1, expected at least",
        ),
        ("MLP", {"width": 65536, "depth": 512}, "its sizes together make about"),
        ("DDPMpp", {"channels": 65536, "blocks": 512}, "its sizes together make about"),
        (
            "DDPMpp",
            {"channels": 132, "multipliers": (1,), "attention": ()},
            "channels = 132, expected with multipliers",
        ),
        ("DDPMpp", {"size": 9}, "size = 9, expected a multiple of 2"),
        ("PowerEMA", {"sigma_rels": (0.1,) * 100_000}, "sigma_rels = .*, expected a tuple of a length within"),
        ("Gaussian", {"n": 16_777_216, "dim": 65_536}, "n = 16777216, expected at most"),
        ("Noise", {"shape": (65_536, 65_536)}, "shape = .*, expected at most 2147483648 numbers"),
        ("LatentSpace", {"shape": (65_536, 65_536)}, "shape = .*, expected at most 2147483648 numbers"),
        ("Foreign", {"time_name": "cond"}, "cond_name = 'cond', expected another name"),
        ("Foreign", {"time_name": "a b"}, "time_name = 'a b', expected the name of an argument"),
        ("EDM", {"sigma_min": 90.0}, "sigma_min = 90.0, expected less than sigma_max = 80.0"),
        ("EDMHeun", {"sigma_min": 90.0}, "sigma_min = 90.0, expected less than sigma_max = 80.0"),
        ("VariancePreserving", {"beta_start": 0.5}, "beta_start = 0.5, expected at most beta_end = 0.02"),
        ("Consistency", {"nfe": 2, "times": (0.0,)}, "times = .*, expected 2 times, one for each"),
        ("Phases", {"bounds": (0.0, 0.5, 0.5)}, "bounds = .*, expected times that increase strictly"),
        ("Phased", {"nfe": 1}, "nfe = 1, expected at least 2, one evaluation for each phase"),
        ("Phased", {"bounds": (0.0, 0.5)}, "bounds = .*, expected times that increase from 0 to 1"),
        ("Phased", {"nfe": 3, "steps": (1, 1)}, "steps = .*, expected 2 numbers, one for each phase, whose sum is nfe"),
        ("Phased", {"times": (0.0, 0.6)}, "times = .*, expected all times at which a phase begins among them"),
        ("Squeezed", {"low": 1.0}, "low = 1.0, expected less than high = 1.0"),
        (
            "FlowThenJump",
            {"nfe": 3, "times": (0.0, 0.0)},
            "times = .*, expected times that start at 0 and increase strictly",
        ),
        (
            "FlowThenJump",
            {"nfe": 3, "times": (0.1, 0.5)},
            "times = .*, expected times that start at 0 and increase strictly",
        ),
        ("FlowThenJump", {"nfe": 4, "times": (0.0, 0.5)}, "times = .*, expected 3 times from 0, for nfe = 4"),
        ("FlowThenJump", {"nfe": 5, "times": (0.0, 0.5)}, "times = .*, expected 3 times from 0, for nfe = 5"),
        ("Moves", {"times": (0.0, 0.6, 0.3)}, "times = .*, expected times that start at 0 and increase strictly below"),
        ("Moves", {"times": (0.0, 0.6, 0.7)}, "times = .*, expected 2 times, one more than moves"),
        ("Jumps", {"nfe": 2, "times": (0.0, 0.0)}, "times = .*, expected times that start at 0 and increase"),
        ("DoublingSteps", {"mean": 1000.0}, "mean = 1000.0, expected less than 6 std from the noise levels"),
        ("DoublingSteps", {"images": 3}, "images = 3, expected at least one for each"),
        ("ShortcutModel", {"denoise_timesteps": 100}, "denoise_timesteps = 100, expected a power of two"),
        ("AdamW", {"betas": (0.9,)}, "betas = .*, expected a tuple of a number within .*, a number within"),
        ("AdamW", {"betas": (0.9, 1.0)}, "betas = "),
    ],
)
def test_what_needs_two_fields_is_checked_too(component, fields, message):
    cls = COMPONENTS[component]
    with pytest.raises(ComponentError, match=rf"^{component}: {message}"):
        cls(**{**base(cls), **fields})


def test_ints_stand_for_floats_as_they_come_from_json():
    made = from_json({"type": "facm:AdamW", "lr": 1, "weight_decay": 0, "betas": [0, 0.5], "clip": math.inf})
    assert made == AdamW(lr=1.0, weight_decay=0.0, betas=(0.0, 0.5), clip=math.inf)
    assert made.betas == (0, 0.5)
    assert to_json(made)["lr"] == 1


def test_the_largest_published_networks_can_be_made():
    """FLUX's width and depth, a language model's, and EDM2's and ADM's U-Nets."""
    lightning, unet = COMPONENTS["LightningDiT"], COMPONENTS["DDPMpp"]
    for width, depth, heads in ((3072, 57, 24), (5120, 40, 40), (12288, 96, 96)):
        lightning(hidden_size=width, depth=depth, num_heads=heads)
    unet(size=512, channels=512, multipliers=(1, 1, 2, 2, 4, 4), attention=(32, 16), blocks=3)


def test_every_component_is_listed_with_a_small_example():
    assert set(COMPONENTS) == set(PUBLIC)
    assert all(made is not None for made in (cls(**base(cls)) for cls in COMPONENTS.values()))
    assert len(list(itertools.chain(cases(COMPONENTS)))) > 150
    assert DoublingSteps(1000).most_steps == 1280

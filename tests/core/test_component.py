"""What makes a frozen dataclass a component: a user's own profits from it, and need not."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import pytest

from facm import FACM, Labels, Run, TeacherVelocity
from facm.core.component import (
    ComponentError,
    Count,
    Positive,
    Range,
    check_fulfils,
    component,
    make,
    refused,
    shown,
)
from facm.core.types import Dataset, NetworkConfig
from facm.flow import L2, Uniform
from facm.flow.distances import Distance


@runtime_checkable
class Shape(Protocol):
    def area(self) -> float: ...


class Unasked(Protocol):
    def name(self) -> str: ...


@dataclass(frozen=True)
class Square:
    def area(self) -> float:
        return 1.0


@dataclass(frozen=True)
@component
class Blur:
    width: Annotated[int, Range("[1, 9]")]
    strength: Positive = 1.0
    kind: Literal["box", "gauss"] = "box"
    angles: tuple[float, ...] = ()
    size: tuple[Count, Count] = (1, 1)
    shape: Shape | None = None
    label: str | int = "x"
    free: Any = None
    unasked: Unasked | None = None
    limit: Annotated[float, Range("(0, inf]")] = math.inf
    place: int = 0
    exact: bool = False

    def __post_init__(self) -> None:
        if self.width % 2 == 0:
            raise refused(self, "width", "an odd number")


@pytest.mark.parametrize(
    "fields",
    [
        {"strength": 2, "angles": (1, 0.5, -7), "size": (1, 2**31 - 1)},
        {"kind": "gauss", "shape": Square(), "label": 3, "free": object(), "unasked": object()},
        {"limit": 1e-9, "place": -(2**63), "exact": True},
    ],
)
def test_what_the_annotations_admit_is_taken_as_it_is(fields):
    made = Blur(3, **fields)
    assert all(getattr(made, name) is value for name, value in fields.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 4}, "width = 4, expected an odd number"),
        ({"width": 0}, "width = 0, expected an integer within [1, 9]"),
        ({"width": True}, "width = True, expected an integer within [1, 9]"),
        ({"width": 3.0}, "width = 3.0, expected an integer within [1, 9]"),
        ({"strength": math.nan}, "strength = nan, expected a number within [1e-12, 1e12]"),
        ({"strength": 10**400}, "strength = 1000"),
        ({"strength": "1"}, "strength = '1', expected a number within"),
        ({"kind": "round"}, "kind = 'round', expected one of 'box', 'gauss'"),
        ({"kind": ["box"]}, "kind = ['box'], expected one of"),
        ({"angles": (1.0, math.inf)}, "angles = (1.0, inf), expected a tuple, each item a finite number"),
        ({"angles": "12"}, "angles = '12', expected a tuple"),
        ({"size": (1,)}, "size = (1,), expected a tuple of an integer within [1, 2147483647], an integer within"),
        ({"shape": Square}, "expected an instance of Shape or None"),
        ({"shape": L2()}, "shape = L2(), expected an instance of Shape or None"),
        ({"label": None}, "label = None, expected text or an integer of 64 bits"),
        ({"limit": 0}, "limit = 0, expected a number within (0, inf]"),
        ({"place": 2**63}, "place = 9223372036854775808, expected an integer of 64 bits"),
        ({"place": 10**5000}, "place = an integer of over 4000 digits, expected an integer of 64 bits"),
        ({"strength": -(10**5000)}, "strength = an integer of over 4000 digits, expected a number within"),
        ({"angles": (10**5000,)}, "angles = an object of tuple, expected a tuple, each item a finite number"),
        ({"limit": 10**400}, "limit = 1000000000"),
        ({"exact": 1}, "exact = 1, expected True or False"),
    ],
)
def test_anything_else_is_one_error_that_names_it(fields, message):
    with pytest.raises(ComponentError) as refusal:
        Blur(**{"width": 3} | fields)
    assert str(refusal.value).startswith("Blur: ")
    assert message in str(refusal.value)


def test_a_list_becomes_its_tuple():
    assert Blur(3, angles=[1.0, 2.0]) == Blur(3, angles=(1.0, 2.0))
    assert hash(Blur(3, angles=[1.0])) == hash(Blur(3, angles=(1.0,)))


def test_a_copy_is_checked_as_well():
    with pytest.raises(ComponentError, match="strength = -1"):
        dataclasses.replace(Blur(3), strength=-1)


def test_a_dataclass_of_these_fields_is_made_whether_it_is_a_component_or_not():
    @dataclass(frozen=True)
    class Plain:
        a: int
        b: str = "x"

    assert make(Plain, {"a": "unchecked"}) == Plain("unchecked")
    with pytest.raises(ComponentError, match=r"^Plain: the field 'zzz' is unknown, expected the fields a, b$"):
        make(Plain, {"a": 1, "zzz": 1})
    with pytest.raises(ComponentError, match=r"^Plain: the field 'a' is missing, expected the fields a, b$"):
        make(Plain, {})
    with pytest.raises(ComponentError, match=r"the field 'a\\x1b\[2J' is unknown"):
        make(Plain, {"a\x1b[2J": 1})


def test_a_users_subclass_of_a_component_checks_what_it_inherits():
    @dataclass(frozen=True)
    class Mine(Uniform):
        own: "Nowhere" = None  # noqa: F821  # not asked for a meaning, since Mine is no component

    assert Mine(0.1, 0.2, own="anything").own == "anything"
    with pytest.raises(ComponentError, match=r"^Mine: low = -1, expected"):
        Mine(-1)


def test_a_users_own_part_needs_the_names_alone():
    class Net:
        def build(self):
            raise NotImplementedError

    assert isinstance(Net(), NetworkConfig)
    absolute = lambda prediction, target: prediction - target  # noqa: E731
    assert FACM(Labels(3), anchor=absolute).anchor is absolute
    assert isinstance(absolute, Distance)
    with pytest.raises(ComponentError, match=r"^FACM: anchor = <class .*L2'>, expected an instance of Distance"):
        FACM(Labels(3), anchor=L2)
    with pytest.raises(ComponentError, match=r"^FACM: velocity = .*, expected an instance of VelocityTarget"):
        FACM(Labels(3), velocity=TeacherVelocity)


@pytest.mark.parametrize("text", ["0, 1", "[0,1]", "[0, 1", "0", "[a b, 1]"])
def test_a_range_that_is_no_interval_is_an_error(text):
    with pytest.raises(ValueError, match="expected an interval"):
        _ = 0 in Range(text)


def test_a_range_has_its_square_ends_alone():
    inside = {
        text: [x for x in (-1, 0, 0.5, 1, math.inf, math.nan) if x in Range(text)] for text in ("[0, 1)", "(0, inf]")
    }
    assert inside == {"[0, 1)": [0, 0.5], "(0, inf]": [0.5, 1, math.inf]}
    assert 2**63 - 1 in Range("[0, 9223372036854775807]")
    assert 2**63 not in Range("[0, 9223372036854775807]")


def test_a_value_is_shown_on_one_short_line():
    class Noisy:
        def __repr__(self):
            return "a\nb\t c"

    assert shown(Noisy()) == "a b c"
    assert shown("x" * 1000) == "'" + "x" * 76 + "..."
    assert shown("\x1b[2J") == r"'\x1b[2J'"

    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert shown(Broken()) == "an object of Broken"


def test_what_a_users_part_made_must_have_every_name_of_its_protocol():
    class Data:
        shape, num_classes = (2,), None

        def __len__(self):
            return 1

    with pytest.raises(
        ComponentError, match=r"^Square made an object of type Data without flip, read, expected a Dataset"
    ):
        check_fulfils(Data(), Dataset, Square())
    Data.flip, Data.read = False, None
    check_fulfils(Data(), Dataset, Square())


def test_run_says_which_component_is_wrong():
    with pytest.raises(ComponentError, match=r"^Run: network = 'XL/1', expected an instance of NetworkConfig"):
        Run("XL/1", None, None, 1)

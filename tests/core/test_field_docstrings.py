"""The command line shows the docstring after a field as its help, so that every option of a recipe has one."""

import ast

import pytest

from tests.paths import ROOT

PACKAGES = ("networks", "data", "latents", "derivative")


def options() -> dict[str, ast.ClassDef]:
    """The configurations: frozen dataclasses that are built, opened or called."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / "src" / "facm" / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                    continue
                methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                frozen = any(ast.unparse(d) == "dataclass(frozen=True)" for d in node.decorator_list)
                if (frozen and methods & {"build", "open", "__call__"}) or node.name in ("InMemory", "Statistics"):
                    found[node.name] = node
    return found


OPTIONS = options()


def test_the_configurations_are_found():
    names = {"LightningDiT", "DDPMpp", "EDM", "Foreign", "MLP", "Cifar10", "Noise", "Ring", "TarPictures", "Latents"}
    assert names | {"VAVAE", "TAEF2", "LatentSpace", "Chain", "OpLevel", "FiniteDifference", "InMemory"} <= set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_field_says_what_it_is(name):
    body = OPTIONS[name].body
    for field, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign):
            continue
        where = f"{name}.{ast.unparse(field.target)}"
        assert isinstance(after, ast.Expr), f"{where} has no docstring"
        assert isinstance(after.value, ast.Constant), f"{where} has no docstring"
        text = after.value.value
        assert isinstance(text, str), where
        assert len(text) < 200, where
        assert "\n" not in text, where
        assert text[0].isupper() or text[0].isdigit(), where
        assert text.endswith("."), where

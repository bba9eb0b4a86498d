"""Private names of PyTorch stand in one file, and what is built on them does what it says."""

import ast
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from facm.core import torch_private
from tests.paths import ROOT

SOURCE = ROOT / "src" / "facm"
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != Path(torch_private.__file__))


def private_names(text: str) -> list[str]:
    """Private attributes of anything but an object's own and Python's pickle; private imports from torch; and private
    names of torch's that are given as text."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            of = ast.unparse(node.value)
            if of not in ("self", "cls", "super()", "pickle"):
                found.append(f"{of}.{node.attr}")
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if "._" in name]
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("torch") and "._" in a.name]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            given = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
            found += [name for name in given if name.startswith("_") and not name.startswith("__")]
    return found


def test_the_search_sees_what_it_is_to_see():
    text = "import torch._dynamo\nfrom torch.utils._pytree import tree_map\ntorch._C.x\nm._apply(f)\nself._own()\n"
    text += "getattr(m, '_compiled_call_impl', None)\nfrom torch.utils import _pytree\n"
    assert sorted(private_names(text)) == sorted(
        [
            "torch._dynamo",
            "torch.utils._pytree.tree_map",
            "torch._C",
            "m._apply",
            "_compiled_call_impl",
            "torch.utils._pytree",
        ]
    )


def test_no_other_file_touches_a_private_name():
    assert len(FILES) > 100
    found = {str(path.relative_to(SOURCE)): private_names(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


def test_levels_and_transforms_are_noticed():
    assert not torch_private.inside_dual_level()
    with fwd.dual_level():
        assert torch_private.inside_dual_level()
        assert not torch_private.inside_functorch()
    seen = []
    torch.func.jvp(lambda x: (seen.append(torch_private.inside_functorch()), x)[1], (torch.ones(2),), (torch.ones(2),))
    assert seen == [True]
    assert not torch_private.inside_functorch()


class Seen(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def test_what_a_mode_sees():
    x = torch.ones(2)
    with fwd.dual_level(), Seen() as mode:
        fwd.unpack_dual(fwd.make_dual(x, x))
        assert torch_private.dual_functions() <= set(mode.functions)
        mode.functions.clear()
        x.shape
        assert set(mode.functions) <= torch_private.tensor_attributes()
        assert mode.functions
        mode.functions.clear()
        with torch_private.without_torch_function():
            torch.add(x, x)
        assert mode.functions == []


def test_a_backward_pass_stays_inside_the_modes():
    x = torch.ones(2, requires_grad=True)
    for run, again in ((torch_private.backward, True), (lambda loss: loss.backward(), False)):
        loss = checkpoint(torch.sin, x, use_reentrant=False).sum()
        with Seen() as mode:
            run(loss)
        assert (torch.sin in mode.functions) is again
    torch.testing.assert_close(x.grad, 2 * torch.ones(2).cos())


def test_a_forward_is_replaced_and_put_back():
    module = nn.Linear(2, 2)
    hooked = []
    module.register_forward_hook(lambda *_: hooked.append(1))
    outer = torch_private.replace_forward(module, lambda x: x + 1)
    inner = torch_private.replace_forward(module, lambda x: x + 2)
    assert module(torch.zeros(1)).item() == 2
    inner()
    assert module(torch.zeros(1)).item() == 1
    outer()
    assert module(torch.zeros(2)).shape == (2,)
    assert "forward" not in vars(module)
    assert len(hooked) == 3


def test_a_compiled_call_is_taken_off_and_put_back():
    module = nn.Linear(2, 2)
    assert torch_private.compiled_call(module) is None
    module.compile(backend="eager")
    call = torch_private.compiled_call(module)
    assert call is not None
    torch_private.set_compiled_call(module, lambda x: x + 5)
    assert module(torch.zeros(1)).item() == 5
    torch_private.set_compiled_call(module, None)
    assert module(torch.zeros(2)).shape == (2,)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_are_known_by_their_memory(device):
    x, y = torch.ones(4, device=device), torch.ones(4, device=device)
    assert torch_private.storage_key(x) == torch_private.storage_key(x[1:])
    assert torch_private.storage_key(x) != torch_private.storage_key(y)


def test_all_tensors_of_a_module_are_replaced():
    module = nn.BatchNorm1d(3)
    torch_private.map_tensors(module, lambda tensor: tensor + 1)
    assert module.weight.tolist() == [2, 2, 2]
    assert module.running_mean.tolist() == [1, 1, 1]
    assert isinstance(module.weight, nn.Parameter)

"""Checks the tests by mutation: flip a sign, drop a factor, remove a stop-gradient or a check, and a test must fail.

    python tools/mutants.py [--only SUBSTRING ...] [--jobs N] [--list]

Works on a copy of src/, tests/ and examples/ in a temporary folder; the checkout is never edited. Prints every mutant with the
first test that noticed it, and exits with 1 if one survives or if the tests fail without any mutation.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TIMEOUT = 300  # seconds; a mutant that hangs is killed
SURVIVED = ""
FINISHED = "finished: "  # before a child's answer, so that a crash is not taken for survival

# Attention's kernels run in an interpreter, in processes of their own: half a minute a mutant, so none is tried.
TESTS = "not (test_maths_attention and test_kernel)"

# Which test files, by the end of their names, most likely notice a mutation of a file; where these do not, the rest of
# the maths' are run. The first key that fits counts.
FIRST = {
    "autoencoders": ["autoencoders"],
    "foreign_weights.py": ["autoencoders", "published"],
    "data/latents.py": ["latents", "data_stream", "prepare"],
    "data/shards.py": ["latents", "prepare"],
    "data/crop.py": ["latents", "prepare"],
    "data/manifest.py": ["latents", "prepare"],
    "data/stream.py": ["data_stream", "latents"],
    "data/webdataset.py": ["prepare"],
    "data/pictures.py": ["prepare"],
    "prepare": ["prepare"],
    "networks/variance_preserving.py": ["vp"],
    "studies": ["study_numbers", "study_runs", "studies"],
    "run.py": ["run_folder"],
    "networks/adapters.py": ["foreign", "cifar10_recipes"],
    "networks/edm.py": ["edm", "edm_pickle"],
    "networks/ddpm_pp.py": ["ddpm_pp"],
    "networks/simple_edm.py": ["simple_edm"],
    "published/persistence.py": ["edm_pickle"],
    "published/edm_pickle.py": ["edm_pickle"],
    "recipes/cifar10.py": ["cifar10_recipes"],
    "networks/published_sizes.py": ["vp", "published"],
    "published": ["published"],
    "evaluation/extraction.py": ["metrics", "evaluate"],
    "evaluation/inception_score.py": ["scores"],
    "evaluation/kernel.py": ["scores"],
    "evaluation/metrics.py": ["metrics", "evaluate", "evaluation_inception"],
    "evaluation/reference.py": ["reference"],
    "statistics.py": ["statistics"],
    "decoding.py": ["decoding"],
    "trained.py": ["trained"],
    "types.py": ["basics", "networks"],
    "paths.py": ["basics"],
    "times.py": ["basics"],
    "weights.py": ["basics"],
    "distances.py": ["basics"],
    "conditions.py": ["basics"],
    "tasks.py": ["basics"],
    "seeding.py": ["basics", "samplers"],
    "blocks.py": ["basics", "unfriendly", "ddpm_pp"],
    "guidance.py": ["guidance", "objectives"],
    "derivative/rules.py": ["unfriendly", "derivative"],
    "derivative": ["derivative", "unfriendly"],
    "attention": ["attention"],
    "samplers.py": ["samplers"],
    "generate.py": ["samplers", "evaluate"],
    "ema.py": ["ema"],
    "optim.py": ["ema"],
    "objectives/mean_flow.py": ["mean_flow"],
    "objectives/scm.py": ["scm"],
    "training.py": ["scm"],
    "objectives": ["objectives"],
    "networks": ["networks", "golden"],
}


@dataclass(frozen=True)
class Mutant:
    """Replace ``old``, which occurs exactly once in src/facm/``file``, by ``new``."""

    file: str
    old: str
    new: str
    what: str

    @property
    def name(self) -> str:
        return f"{self.file}: {self.what}"


M = Mutant
MUTANTS = [
    # types
    M("types.py", "t.reshape(-1, *[1] * (like.ndim - 1))", "t.reshape(*[1] * (like.ndim - 1), -1)", "axes in front"),
    M("types.py", "if t.shape != x.shape[:1]:", "if t.ndim != 1:", "one time is broadcast"),
    M("types.py", "lowest >= 0 and highest <= high", "lowest > 0 and highest <= high", "t = 0 is refused"),
    M("types.py", "lowest >= 0 and highest <= high", "lowest >= 0 and highest < high", "t = 1 is refused"),
    M("types.py", "lowest >= 0 and highest <= high", "lowest >= 0 or highest <= high", "time checked at one end"),
    M("types.py", "if len(set(shapes.values())) > 1:", "if len(set(shapes.values())) > 2:", "shapes are not compared"),
    M("types.py", "(torch.bfloat16, torch.float16) else x", "(torch.float16,) else x", "bf16 is not lifted"),
    M("types.py", "cond, self.start, self.of)", "cond)", "a batch on another device is the whole step"),
    M("types.py", "    if parts is None:\n", "    if True:\n", "parts are not asked for"),
    # blocks
    M("blocks.py", "if not any(name.startswith(other", "if any(name.startswith(other", "inner lists are the blocks"),
    M("blocks.py", "    lists = names or _outermost", "    lists = _outermost", "names are not asked for"),
    M("blocks.py", " if any(True for _ in m.parameters())}", "}", "blocks without parameters"),
    M("blocks.py", "if full == other or full.startswith", "if full.startswith", "a block twice"),
    M("blocks.py", 'full.startswith(other + ".") or ', "", "a block inside an earlier one"),
    M("blocks.py", ' or other.startswith(full + ".")', "", "a block around an earlier one"),
    # paths
    M("paths.py", "return (1 - t) * x_0 + t * x_1", "return t * x_0 + (1 - t) * x_1", "time of the path reversed"),
    M("paths.py", "return (1 - t) * x_0 + t * x_1", "return (1 - t) * x_0 - t * x_1", "sign of the path"),
    M("paths.py", "    check_time(t, x_1)\n", "", "time of the path is not checked"),
    M("paths.py", "return x_1 - x_0", "return x_0 - x_1", "sign of the velocity"),
    M("paths.py", "return x_t + (1 - expand(t, x_t)) * v", "return x_t + expand(t, x_t) * v", "f: 1 - t -> t"),
    M("paths.py", "return x_t + (1 - expand(t, x_t)) * v", "return x_t - (1 - expand(t, x_t)) * v", "f: sign"),
    M("paths.py", "return x_t - expand(t, x_t) * v", "return x_t + expand(t, x_t) * v", "x_0 from v: sign"),
    M("paths.py", "return (x_1 - x_t) / (1 - expand(t, x_t))", "return (x_1 - x_t) / expand(t, x_t)", "v from x_1"),
    M("paths.py", "return (x_t - x_0) / expand(t, x_t)", "return (x_0 - x_t) / expand(t, x_t)", "v from x_0: sign"),
    M("paths.py", "return (x_t - t * x_1) / (1 - t)", "return (x_t - t * x_1) / t", "x_0 from x_1: 1 - t -> t"),
    # times
    M("times.py", "self.low + (self.high - self.low) *", "self.low + self.high *", "width of the uniform times"),
    M("times.py", "self.mean - self.std * z", "self.mean + self.std * z", "logit-normal: sign of z"),
    M("times.py", "self.mean - self.std * z", "-self.mean - self.std * z", "logit-normal: sign of the mean"),
    M("times.py", "return 1 - (2 / math.pi) * torch.arctan", "return (2 / math.pi) * torch.arctan", "arctan: reversed"),
    M(
        "times.py",
        "return 1 - (2 / math.pi) * torch.arctan",
        "return 1 - (1 / math.pi) * torch.arctan",
        "arctan: factor",
    ),
    M("times.py", "torch.exp(self.mean + self.std * z)", "torch.exp(self.mean - self.std * z)", "arctan: sign of z"),
    M("times.py", "torch.exp(self.mean + self.std * z)", "torch.exp(self.std * z)", "arctan: mean forgotten"),
    M("times.py", "    mean: float = -0.8\n", "    mean: float = -1.0\n", "default mean of the times"),
    M("times.py", "    std: float = 1.6\n", "    std: float = 1.4\n", "default spread of the times"),
    M(
        "times.py",
        "return torch.randn(n, generator=rng, device",
        "return torch.randn(n, device",
        "times: global generator",
    ),
    # weights
    M("weights.py", "return torch.ones_like(t)", "return torch.zeros_like(t)", "one -> zero"),
    M("weights.py", "return 1 - t**self.p", "return t**self.p", "alpha: 1 - t^p -> t^p"),
    M("weights.py", "return 1 - t**self.p", "return (1 - t) ** self.p", "alpha: 1 - t^p -> (1 - t)^p"),
    M("weights.py", "    p: float = 0.5\n", "    p: float = 1.0\n", "alpha: default p"),
    M("weights.py", "torch.cos(math.pi / 2 * t)", "torch.sin(math.pi / 2 * t)", "beta: cos -> sin"),
    M("weights.py", "torch.cos(math.pi / 2 * t)", "torch.cos(math.pi * t)", "beta: factor"),
    # distances
    M("distances.py", ".square().flatten(1).mean(1)", ".square().flatten(1).sum(1)", "mean -> sum"),
    M("distances.py", ".square().flatten(1).mean(1)", ".abs().flatten(1).mean(1)", "square -> absolute value"),
    M("distances.py", "(1 - torch.nn.functional.cosine", "(1 + torch.nn.functional.cosine", "sign of the cosine"),
    M(
        "distances.py",
        "cosine_similarity(prediction, target, dim=1)",
        "cosine_similarity(prediction, target, dim=-1)",
        "axis",
    ),
    M("distances.py", "reshape(len(target), -1).mean(1)", "reshape(len(target), -1).sum(1)", "cosine: mean -> sum"),
    M("distances.py", "    if flat:\n", "    if not flat:\n", "flat reversed"),
    M("distances.py", "target.shape[1] < MIN", "target.shape[1] <= MIN", "4 channels are flat"),
    M("distances.py", "MIN_CHANNELS_FOR_COSINE = 4", "MIN_CHANNELS_FOR_COSINE = 3", "3 channels are not flat"),
    M(
        "distances.py",
        "if self.flat is None else self.flat",
        "if self.flat is None else not self.flat",
        "switch reversed",
    ),
    M("distances.py", "target) + cosine_distance(", "target) - cosine_distance(", "sign of the cosine term"),
    M("distances.py", "return e / (e.detach() + self.c)", "return e / (e + self.c)", "stop-gradient of the weight"),
    M(
        "distances.py",
        "return e / (e.detach() + self.c)",
        "return e.detach() / (e + self.c)",
        "stop-gradient misplaced",
    ),
    M("distances.py", "(e.detach() + self.c) ** self.p", "(e.detach() + self.c) ** (1 - self.p)", "p -> 1 - p"),
    M("distances.py", "(e.detach() + self.c) ** self.p", "e.detach() ** self.p + self.c", "c outside of the power"),
    M("distances.py", "    p: float = 0.5\n", "    p: float = 1.0\n", "default p"),
    M("distances.py", "    c: float = 1e-3\n", "    c: float = 1e-2\n", "default c"),
    # conditions
    M("conditions.py", "torch.full_like(cond, self.classes)", "torch.full_like(cond, self.classes - 1)", "null label"),
    M("conditions.py", "torch.full_like(cond, self.classes)", "torch.zeros_like(cond)", "null label is 0"),
    M("conditions.py", "int(cond.max()) <= self.classes)", "int(cond.max()) < self.classes)", "null label refused"),
    M(
        "conditions.py",
        "torch.where(dropped, null, cond)",
        "torch.where(dropped, cond, null)",
        "null where not dropped",
    ),
    # tasks
    M("tasks.py", 'return {"t": 2 - t}', 'return {"t": t}', "c_FM: 2 - t -> t"),
    M("tasks.py", 'return {"t": 2 - t}', 'return {"t": 1 + t}', "c_FM: 2 - t -> 1 + t"),
    M("tasks.py", '"r": torch.ones_like(t)}', '"r": t}', "c_CM: r = 1 -> r = t"),
    M("tasks.py", '"r": torch.ones_like(t)}', '"r": torch.zeros_like(t)}', "c_CM: r = 1 -> r = 0"),
    M(
        "tasks.py",
        'return {"t": t, "r": t}\n\n\ndef',
        'return {"t": t, "r": torch.ones_like(t)}\n\n\ndef',
        "c_FM: r = t -> r = 1",
    ),
    M("tasks.py", 'return {"t": t, "r": t} if', 'return {"t": t, "r": torch.ones_like(t)} if', "native r"),
    M(
        "tasks.py",
        'if "r" in task.anchor(torch.zeros(1)) and not',
        'if "s" in task.anchor(t) and not',
        "task unchecked",
    ),
    # guidance
    M("guidance.py", "(t >= self.low)", "(t > self.low)", "interval: >= low -> > low"),
    M("guidance.py", "(t <= self.high)", "(t < self.high)", "interval: <= high -> < high"),
    M("guidance.py", "(t >= self.low) & (t", "(t >= self.low) | (t", "interval: and -> or"),
    M("guidance.py", "& (self.scale > 1)", "", "w = 1 is guided"),
    M("guidance.py", "return v_u + scale * (v_c - v_u)", "return v_c + scale * (v_c - v_u)", "w -> w + 1"),
    M("guidance.py", "return v_u + scale * (v_c - v_u)", "return v_u + scale * (v_u - v_c)", "sign of guidance"),
    M("guidance.py", "return v_u + scale * (v_c - v_u)", "return v_c + scale * (v_u - v_c)", "cond and null swapped"),
    M(
        "guidance.py",
        "cond=torch.cat([cond, null])",
        "cond=torch.cat([null, cond])",
        "cond and null swapped in the pass",
    ),
    M("guidance.py", "cond=torch.cat([cond, null])", "cond=torch.cat([cond, cond])", "null is not asked"),
    M(
        "guidance.py",
        "v_c, v_u = at_least_float32(network(torch",
        "v_c, v_u = (network(torch",
        "teacher in half precision",
    ),
    M(
        "guidance.py",
        "extrapolate(v_c, v_u, guidance.scale), v_c)",
        "extrapolate(v_c, v_u, guidance.scale), v_u)",
        "outside",
    ),
    M("guidance.py", "[x_t, x_t[which]]", "[x_t, x_t[: len(which)]]", "null at the state of other samples"),
    M(
        "guidance.py",
        "torch.cat([c, c[which]])",
        "torch.cat([c, c[: len(which)]])",
        "null at the time of other samples",
    ),
    M(
        "guidance.py",
        "torch.cat([cond, null[which]])",
        "torch.cat([cond, cond[which]])",
        "null is not asked, some rows",
    ),
    M(
        "guidance.py",
        "out[: len(t)], out[len(t) :]",
        "out[-len(t) :], out[: -len(t)]",
        "cond and null swapped, some rows",
    ),
    M("guidance.py", "v_c.index_copy(0, which,", "v_c.index_copy(0, which.flip(0),", "guided rows swapped"),
    M(
        "guidance.py",
        "extrapolate(v_c[which], v_u,",
        "extrapolate(v_u, v_c[which],",
        "cond and null swapped, guided rows",
    ),
    M(
        "guidance.py",
        "out = at_least_float32(network(torch",
        "out = (network(torch",
        "teacher in half precision, some rows",
    ),
    M("guidance.py", "is_compiled(network) or has_compiled", "has_compiled", "compiled network: another shape"),
    M("guidance.py", " or has_compiled_parts(network):", ":", "compiled blocks: another shape"),
    M("guidance.py", "t.is_meta or torch", "torch", "rows that depend on the data on the meta device"),
    M("guidance.py", "guidance.active(t[:1])", "guidance.active(1 - t[:1])", "field: interval reversed"),
    M("guidance.py", "else NO_GUIDANCE\n", "else guidance\n", "field: null pass where guidance is off"),
    M("guidance.py", "if self.at_anchor else", "if not self.at_anchor else", "at_anchor reversed"),
    M("guidance.py", "partial(native, teacher)", "task.shortcut", "teacher asked at the shortcut"),
    M(
        "guidance.py",
        "    needs_teacher = True\n\n    @torch.no_grad()\n",
        "    needs_teacher = True\n\n",
        "gradient into the teacher",
    ),
    M("guidance.py", "v, w = p.x_1 - p.x_0, self", "v, w = p.x_0 - p.x_1, self", "sign of the data's velocity"),
    M("guidance.py", "task.shortcut if self.at_shortcut", "task.shortcut if not self.at_shortcut", "v_u: head"),
    M("guidance.py", "guided = v + w * (v_c - v_u)", "guided = v_c + w * (v_c - v_u)", "both online: base"),
    M("guidance.py", "guided = v + w * (v_c - v_u)", "guided = v + (w - 1) * (v_c - v_u)", "both online: w -> w - 1"),
    M(
        "guidance.py",
        "torch.where(active, null, p.cond)",
        "torch.where(active, p.cond, null)",
        "outside: null and cond",
    ),
    M(
        "guidance.py",
        "network(p.x_t, cond=null, **times)), w)",
        "network(p.x_t, cond=p.cond, **times)), w)",
        "v_u at the label",
    ),
    M("guidance.py", "active = active & ~p.dropped", "active = active & p.dropped", "dropped reversed"),
    M("guidance.py", "active = active & ~p.dropped", "pass", "dropped samples are guided"),
    M(
        "guidance.py",
        "torch.where(expand(active, v), guided, v)",
        "torch.where(expand(active, v), v, guided)",
        "interval",
    ),
    M(
        "guidance.py",
        'most one of them")\n\n    @torch.no_grad()\n',
        'most one of them")\n\n',
        "gradient through v_u",
    ),
    # derivative
    M("derivative/whole.py", "return value, tangent.detach()", "return value, tangent", "tangent keeps its graph"),
    M(
        "derivative/whole.py",
        "return value, tangent.detach()",
        "return value.detach(), tangent.detach()",
        "value detached",
    ),
    M(
        "derivative/whole.py",
        "return sdpa_kernel(SDPBackend.MATH)",
        "return sdpa_kernel(SDPBackend.FLASH_ATTENTION)",
        "attention",
    ),
    M("derivative/whole.py", ", no_checkpointing():", ":", "checkpointing is not refused"),
    M(
        "derivative/no_graph.py",
        "with torch.no_grad():\n        tangent =",
        "if True:\n        tangent =",
        "graph of the tangent",
    ),
    M(
        "derivative/no_graph.py",
        "return function(*primals), tangent",
        "return function(*primals), -tangent",
        "sign of the tangent",
    ),
    M(
        "derivative/no_graph.py",
        "func(dx, args[1], None, *args[3:])",
        "func(dx, *args[1:])",
        "bias in the tangent",
    ),
    M(
        "derivative/no_graph.py",
        "func(dx, args[1], None, *args[3:])",
        "func(dx, args[1])",
        "stride and padding forgotten",
    ),
    M(
        "derivative/no_graph.py",
        "not any(map(_moves, args[1:3]))",
        "not any(map(_moves, args[2:3]))",
        "moving weights are constant",
    ),
    M(
        "derivative/no_graph.py",
        "not any(map(_moves, args[1:3]))",
        "not any(map(_moves, args[1:2]))",
        "moving biases are constant",
    ),
    M("derivative/no_graph.py", "in LINEAR and not kwargs and", "in LINEAR and", "keywords of linear maps forgotten"),
    M(
        "derivative/no_graph.py",
        "torch.zeros_like(value) if tangent is None",
        "value if tangent is None",
        "constant function",
    ),
    M(
        "derivative/finite_difference.py",
        "(x + self.h * v, t + self.h * dt)",
        "(x + self.h * v, t)",
        "time stands still",
    ),
    M(
        "derivative/finite_difference.py",
        "(x - self.h * v, t - self.h * dt)",
        "(x + self.h * v, t - self.h * dt)",
        "sign",
    ),
    M("derivative/finite_difference.py", "(x - self.h * v, t - self.h * dt)", "(x, t)", "one-sided"),
    M(
        "derivative/finite_difference.py",
        "(forward - backward) / (2 * self.h)",
        "(forward - backward) / self.h",
        "factor",
    ),
    M(
        "derivative/dropout.py",
        'if not getattr(network, "training", False) or not',
        "if not",
        "eval mode is wrapped",
    ),
    M("derivative/dropout.py", '"draws", True)', '"draws", False)', "another mask at each call"),
    M(
        "derivative/dropout.py",
        "            torch.set_rng_state(self.state)",
        "            pass",
        "mask is not restored",
    ),
    M("derivative/seam.py", "**self.times(t))", "t=t)", "time arguments"),
    M(
        "derivative/seam.py",
        "cond=self.cond, **self",
        "cond=None, **self",
        "condition without effect",
    ),
    M("derivative/seam.py", "at_least_float32(self.network(", "(self.network(", "half precision is not lifted"),
    M(
        "derivative/seam.py",
        "with_network(inner, network) if deeper else network",
        "network",
        "dropout inside a wrapper",
    ),
    M(
        "derivative/seam.py",
        "        restore()\n        return method",
        "        return method",
        "redirected within the method",
    ),
    M(
        "derivative/seam.py",
        "    finally:\n        restore()",
        "    finally:\n        pass",
        "redirected after an error",
    ),
    M(
        "derivative/seam.py",
        '            vars(module)["forward"] = before',
        "            pass",
        "a forward of the instance is lost",
    ),
    M(
        "derivative/seam.py",
        "        module._compiled_call_impl = implementation",
        "        pass",
        "compiled code is lost",
    ),
    M("derivative/seam.py", "    module._compiled_call_impl = None\n", "", "compiled code runs instead"),
    M("derivative/seam.py", "(module if through is None else through)(*args)", "module(*args)", "past the wrapper"),
    M(
        "derivative/seam.py",
        "if not (isinstance(wrapper, nn.Module) and isinstance(module, nn.Module)):",
        "if True:",
        "wrapper is entered with tangents",
    ),
    M(
        "derivative/op_by_op.py",
        "torch.zeros_like(value) if tangent is None",
        "value if tangent is None",
        "constant function",
    ),
    M("derivative/op_by_op.py", "        with _OpByOp(attention):", "        if True:", "no rules"),
    M(
        "derivative/op_level.py",
        "partial(pair, attention=self.attention)",
        "pair",
        "choice of the kernel without effect",
    ),
    # derivative: the rules of single operations
    M("derivative/rules.py", "torch.addcmul(d * q, p, e)", "d * q", "product rule: second term"),
    M("derivative/rules.py", "torch.addcmul(d * q, p, e)", "torch.mul(p, e)", "product rule: first term"),
    M(
        "derivative/rules.py",
        "torch.addcmul(d * q, p, e)",
        "torch.addcmul(d * q, p, e, value=-1)",
        "product rule: sign",
    ),
    M("derivative/rules.py", "return p * e if d is None", "return q * e if d is None", "product: factor of the second"),
    M("derivative/rules.py", "if d is None else d * q\n", "if d is None else d * p\n", "product: factor of the first"),
    M("derivative/rules.py", "        total = total + other", "        pass", "matrix product: first term only"),
    M("derivative/rules.py", "        total = total + other", "        total = total - other", "matrix product: sign"),
    M("derivative/rules.py", "        rest[1] = None", "        pass", "bias in the tangent"),
    M("derivative/rules.py", ' if name != "bias"}', "}", "bias in the tangent, by keyword"),
    M("derivative/rules.py", "self.moving == [0] and", "0 in self.moving and", "moving weights are constant"),
    M(
        "derivative/rules.py",
        "if call.only_first_moves else None",
        "if 0 in call.moving else None",
        "moving divisors are constant",
    ),
    M("derivative/rules.py", "[zero, zero, *call.plain[2:]]", "call.plain", "sum: constants in the tangent"),
    M("derivative/rules.py", "call.moving).expand(call.value.shape)", "call.moving)", "sum: shape of the tangent"),
    M(
        "derivative/rules.py",
        "torch.zeros_like(p) if isinstance(p, Tensor) else p for p in call.plain], call",
        "p for p in call.plain], call",
        "joined: constants in the tangent",
    ),
    M(
        "derivative/rules.py",
        "return tangent * (weight.reshape",
        "return tangent / (weight.reshape",
        "norm: weight of a group norm",
    ),
    M(
        "derivative/rules.py",
        "if call.func is nnf.group_norm else weight)",
        "if call.func is nnf.group_norm else 1)",
        "norm: weight",
    ),
    M("derivative/rules.py", "    if weight is None or tangent is None:\n", "    if True:\n", "norm: no weight"),
    M("derivative/rules.py", 'if name not in ("weight", "bias")}', 'if name != "bias"}', "norm: weight twice"),
    M("derivative/rules.py", '"add_ sub_ neg_', '"add_ mul_ sub_ neg_', "write rule: products natively"),
    M(
        "derivative/rules.py",
        '        "masked_select take_along_dim",',
        '        "masked_select take_along_dim prod",',
        "linear: products",
    ),
    M(
        "derivative/rules.py",
        "(p.detach().clone(), d.clone())",
        "(p.detach(), d.clone())",
        "write rule: value written twice",
    ),
    M(
        "derivative/rules.py",
        "into.zero_() if tangent is None else into.copy_(tangent)",
        "pass",
        "write rule: tangent not written",
    ),
    M("derivative/rules.py", 'or kwargs.get("inplace") or', "or", "write rule: inplace=True forgotten"),
    M("derivative/rules.py", "        rewind()\n", "        pass\n", "draws: the tangent draws others"),
    M("derivative/rules.py", '    if "statistics" in call.kind:', "    if False:", "statistics are kept twice"),
    M(
        "derivative/rules.py",
        "    with torch.no_grad():\n        tangent = _tangent",
        "    if True:\n        tangent = _tangent",
        "graph of the tangent",
    ),
    M("derivative/rules.py", "    with torch.enable_grad():\n", "    if True:\n", "duals made under no_grad"),
    M(
        "derivative/rules.py",
        "make_dual(value, tangent.to(value.dtype))",
        "make_dual(value, tangent)",
        "type of the tangent",
    ),
    M(
        "derivative/rules.py",
        "(leaf.is_floating_point() or leaf.is_complex())",
        "leaf.is_floating_point()",
        "complex numbers are constant",
    ),
    M("derivative/rules.py", " and not _mask_moves(args, kwargs):", ":", "moving masks of attention"),
    M(
        "derivative/rules.py",
        "        tuple(d for _, d in pairs),",
        "        tuple(d for _, d in pairs[::-1]),",
        "attention: tangents swapped",
    ),
    # derivative: chain
    M(
        "derivative/chain.py",
        "tuple(d.detach() for d in derivatives)",
        "tuple(derivatives)",
        "graph of the first tangent",
    ),
    M(
        "derivative/chain.py",
        "fwd.make_dual(primal, tangent.detach())",
        "fwd.make_dual(primal, tangent)",
        "tangent is not cut",
    ),
    M(
        "derivative/chain.py",
        "fwd.make_dual(primal, tangent.detach())",
        "fwd.make_dual(primal.detach(), tangent)",
        "value is cut",
    ),
    M(
        "derivative/chain.py",
        "(h, *state[1:]), (dh, *d_state[1:])",
        "(h, *state[1:]), d_state",
        "tangent of the state stays",
    ),
    M(
        "derivative/chain.py",
        "(dh, *d_state[1:])",
        "(dh, *map(torch.zeros_like, d_state[1:]))",
        "condition is constant",
    ),
    M(
        "derivative/chain.py",
        "forward(*state, *constants), state",
        "forward(*state, *constants[1:]), state",
        "constants of a block",
    ),
    M("derivative/chain.py", "                draws.replay()", "                pass", "mask is not restored"),
    M("derivative/chain.py", "**function.times(t))", "t=t)", "time arguments"),
    M(
        "derivative/chain.py",
        "redirected(block, method, state, d_state, constants)",
        "method(block.forward, state, d_state, constants)",
        "past the hooks of a block",
    ),
    M("derivative/chain.py", "*primals, *tangents, through=outer)", "*primals, *tangents)", "past the wrapper"),
    M("derivative/chain.py", "if self.checkpoint and torch.is_grad_enabled():", "if False:", "nothing is checkpointed"),
    M(
        "derivative/chain.py",
        "if isinstance(inner, Chained) and not self.blocks:",
        "if isinstance(inner, Chained):",
        "names of blocks without effect",
    ),
    M(
        "derivative/chain.py",
        "        if called != list(blocks):",
        "        if set(called) != set(blocks):",
        "order is not checked",
    ),
    M(
        "derivative/chain.py",
        "        if called != list(blocks):",
        "        if len(called) != len(blocks):",
        "calls are counted, not compared",
    ),
    M(
        "derivative/chain.py",
        "                hooks.enter_context(no_checkpointing())",
        "                pass",
        "checkpointing is not refused",
    ),
    M(
        "derivative/chain.py",
        "(op_level_pair if op_level else whole_pair)",
        "whole_pair",
        "never by operation",
    ),
    # attention
    M("attention/plain.py", "1 / math.sqrt(q.shape[-1])", "1 / q.shape[-1]", "default scale"),
    M("attention/plain.py", "_weights(_products(q, k) * scale,", "_weights(_products(q, k),", "scores are not scaled"),
    M(
        "attention/plain.py",
        "_moved_scores(q, k, dq, dk) * scale",
        "_moved_scores(q, k, dq, dk)",
        "moved scores are not scaled",
    ),
    M("attention/plain.py", "(moved - (weights * moved).sum(-1, keepdim=True))", "moved", "row sum dropped"),
    M(
        "attention/plain.py",
        "(moved - (weights * moved).sum(-1, keepdim=True))",
        "(moved + (weights * moved).sum(-1, keepdim=True))",
        "row sum: sign",
    ),
    M(
        "attention/plain.py",
        "(weights * moved).sum(-1, keepdim=True)",
        "moved.sum(-1, keepdim=True)",
        "row sum without weights",
    ),
    M(
        "attention/plain.py",
        "(weights * moved).sum(-1, keepdim=True)",
        "(weights * moved).sum(-2, keepdim=True)",
        "sum over queries",
    ),
    M("attention/plain.py", "else out + through_scores", "else through_scores", "dv dropped"),
    M("attention/plain.py", "else out + through_scores", "else out", "moved scores dropped"),
    M(
        "attention/plain.py",
        "torch.cat([k, dk], dim=-1))",
        "torch.cat([dk, k], dim=-1))",
        "tangents of q and k swapped",
    ),
    M("attention/plain.py", "return _products(q, dk)", "return -_products(q, dk)", "sign of dk"),
    M("attention/plain.py", "return _products(dq, k)", "return _products(q, k)", "dq without effect"),
    M("attention/plain.py", "a.float() @ b.float().mT", "(a @ b.mT).float()", "scores in half precision"),
    M(
        "attention/plain.py",
        "device=scores.device).tril()",
        "device=scores.device).triu()",
        "causal from the other side",
    ),
    M("attention/plain.py", "device=scores.device).tril()", "device=scores.device).tril(-1)", "causal: not itself"),
    M(
        "attention/plain.py",
        "device=scores.device).tril()",
        "device=scores.device).tril(scores.shape[-1] - scores.shape[-2])",
        "causal from the bottom right",
    ),
    M("attention/plain.py", "masked_fill(~mask, -math.inf)", "masked_fill(mask, -math.inf)", "mask reversed"),
    M("attention/plain.py", "else scores + mask", "else scores * mask", "additive mask"),
    M("attention/plain.py", ".masked_fill(scores.isneginf().all(-1, keepdim=True), 0.0)", "", "rows that take no key"),
    M(
        "attention/plain.py",
        "z.repeat_interleave(wanted // heads, dim=-3)",
        "z.repeat(*[1] * (z.ndim - 3), wanted // heads, 1, 1)",
        "order of grouped heads",
    ),
    # objectives
    M("objectives/shortcut.py", "F_sg = F_CM.detach()", "F_sg = F_CM", "gradient through the target"),
    M("objectives/shortcut.py", "v + (1 - expand(t, v)) * dF", "v - (1 - expand(t, v)) * dF", "sign of dF in v_bar"),
    M("objectives/shortcut.py", "v + (1 - expand(t, v)) * dF", "v + expand(t, v) * dF", "v_bar: 1 - t -> t"),
    M("objectives/shortcut.py", "v + (1 - expand(t, v)) * dF", "v + dF", "v_bar: factor dropped"),
    M("objectives/shortcut.py", "g = F_sg - v_bar", "g = v_bar - F_sg", "sign of g"),
    M("objectives/shortcut.py", "g.clamp(-clamp, clamp)", "g.clamp(-clamp)", "clamp above forgotten"),
    M("objectives/shortcut.py", "g.clamp(-clamp, clamp)", "g.clamp(max=clamp)", "clamp below forgotten"),
    M("objectives/shortcut.py", "g.clamp(-clamp, clamp)", "g.clamp(-1, 1)", "clamp at 1 whatever is asked"),
    M("objectives/shortcut.py", "g if clamp is None", "g if True", "no clamp"),
    M("objectives/shortcut.py", "F_sg - expand(alpha, v) * g_clamped", "F_sg - g_clamped", "no interpolation"),
    M(
        "objectives/shortcut.py",
        "F_sg - expand(alpha, v) * g_clamped",
        "F_sg + expand(alpha, v) * g_clamped",
        "sign of g",
    ),
    M("objectives/shortcut.py", "F_sg - expand(alpha, v) * g_clamped", "F_sg - expand(alpha, v) * g", "clamp unused"),
    M("objectives/facm.py", "interpolate(x_0, x_1, t)", "interpolate(x_1, x_0, t)", "noise and data swapped"),
    M(
        "objectives/facm.py",
        "Prediction(network, self.task.anchor,",
        "Prediction(network, self.task.shortcut,",
        "anchor at c_CM",
    ),
    M(
        "objectives/facm.py",
        "Prediction(network, self.task.shortcut,",
        "Prediction(network, self.task.anchor,",
        "shortcut at c_FM",
    ),
    M("objectives/facm.py", "(v, torch.ones_like(t))", "(-v, torch.ones_like(t))", "tangent v -> -v"),
    M("objectives/facm.py", "(v, torch.ones_like(t))", "(v, torch.zeros_like(t))", "tangent of time 1 -> 0"),
    M(
        "objectives/facm.py",
        "(v, torch.ones_like(t))",
        "(x_1 - x_0, torch.ones_like(t))",
        "tangent of the plain velocity",
    ),
    M("objectives/facm.py", "self.alpha(t), self.clamp", "self.beta(t), self.clamp", "alpha -> beta"),
    M("objectives/facm.py", "L_CM = self.beta(t) * L_norm", "L_CM = self.alpha(t) * L_norm", "beta -> alpha"),
    M("objectives/facm.py", "L_CM = self.beta(t) * L_norm", "L_CM = L_norm", "beta dropped"),
    M("objectives/facm.py", "self.anchor(F_FM, v)", "self.anchor(F_FM, x_1 - x_0)", "anchor without guidance"),
    M("objectives/facm.py", "self.anchor(F_FM, v)", "self.anchor(F_CM, v)", "anchor on the shortcut's head"),
    M("objectives/facm.py", "self.shortcut(F_CM, target.v_tar)", "self.shortcut(F_CM, target.v_bar)", "v_tar -> v_bar"),
    M(
        "objectives/facm.py",
        "(self.L_FM + self.L_CM).mean()",
        "(self.L_FM + self.L_norm).mean()",
        "beta not in the loss",
    ),
    M("objectives/facm.py", "(self.L_FM + self.L_CM).mean()", "(self.L_FM + self.L_CM).sum()", "mean -> sum"),
    M("objectives/facm.py", "(self.L_FM + self.L_CM).mean()", "(self.L_FM - self.L_CM).mean()", "sign of the shortcut"),
    M(
        "objectives/facm.py",
        "return Loss(self.L_FM.mean()",
        "return Loss(self.L_FM.sum()",
        "the anchor's part: mean -> sum",
    ),
    M(
        "objectives/facm.py",
        "return Loss(self.L_CM.mean()",
        "return Loss(self.L_CM.sum()",
        "the shortcut's part: mean -> sum",
    ),
    M(
        "objectives/facm.py",
        "return Loss(self.L_CM.mean()",
        "return Loss(self.L_norm.mean()",
        "the shortcut's part: beta dropped",
    ),
    M(
        "objectives/facm.py",
        "d.cond, teacher, d.dropped):",
        "d.cond, teacher, None):",
        "parts: dropped labels are guided",
    ),
    M(
        "objectives/facm.py",
        "for part in self._parts(network, batch.x_1, d.x_0, d.t, d.cond, teacher, d.dropped):",
        "for part in list(self._parts(network, batch.x_1, d.x_0, d.t, d.cond, teacher, d.dropped)):",
        "parts: all computed before the first is given",
    ),
    M("objectives/facm.py", "network = same_dropout(network)", "pass", "another dropout mask at each call"),
    M("objectives/facm.py", "        check_task(self.task, network)\n", "", "task is not checked"),
    M("objectives/facm.py", "        self.condition.check(cond, len(x_1))\n", "", "labels are not checked"),
    M("objectives/facm.py", "teacher, d.dropped).loss()", "teacher).loss()", "dropped labels are guided"),
    M(
        "objectives/draws.py",
        "condition.drop(batch.cond, dropped), dropped",
        "batch.cond, dropped",
        "labels not dropped",
    ),
    M(
        "objectives/draws.py",
        "device=rng.device) < probability",
        "device=rng.device) > probability",
        "dropout reversed",
    ),
    M(
        "objectives/draws.py",
        "torch.rand(size(batch), generator",
        "torch.rand(len(batch.x_1), generator",
        "dropout: rows of a part",
    ),
    M(
        "objectives/draws.py",
        "rows(torch.rand(size(batch), generator=rng, device=rng.device) < probability, batch)",
        "torch.rand(1, generator=rng).expand(len(batch.x_1)) < probability",
        "one draw for the batch",
    ),
    M("objectives/draws.py", "shape = (size(batch), *", "shape = (len(batch.x_1), *", "noise: rows of a part"),
    M(
        "objectives/draws.py",
        "whole[batch.start : batch.start + len(batch.x_1)]",
        "whole[: len(batch.x_1)]",
        "every part draws the first rows",
    ),
    M(
        "objectives/draws.py",
        "len(batch.x_1) if batch.of is None else batch.of",
        "len(batch.x_1) + batch.start",
        "draws up to the part",
    ),
    M(
        "objectives/draws.py",
        "rows(time.sample(size(batch), rng), batch)",
        "time.sample(len(batch.x_1), rng)",
        "times: rows of a part",
    ),
    M("objectives/consistency.py", "interpolate(x_0, x_1, t)", "interpolate(x_1, x_0, t)", "noise and data swapped"),
    M("objectives/consistency.py", "self.task.shortcut,", "self.task.anchor,", "shortcut asked at c_FM"),
    M("objectives/consistency.py", "Loss(self.L_CM.mean()", "Loss(self.L_CM.sum()", "mean -> sum"),
    M("objectives/consistency.py", "(v, torch.ones_like(t))", "(-v, torch.ones_like(t))", "tangent v -> -v"),
    M("objectives/consistency.py", "(v, torch.ones_like(t))", "(v, torch.zeros_like(t))", "tangent of time 1 -> 0"),
    M("objectives/consistency.py", "self.alpha(t), self.clamp", "self.beta(t), self.clamp", "alpha -> beta"),
    M("objectives/consistency.py", "self.beta(t) * L_norm)", "L_norm)", "beta dropped"),
    M(
        "objectives/consistency.py",
        "self.shortcut(F_CM, target.v_tar)",
        "self.shortcut(F_CM, target.v_bar)",
        "v_tar -> v_bar",
    ),
    M("objectives/consistency.py", "network = same_dropout(network)", "pass", "another dropout mask at each call"),
    M("objectives/flow_matching.py", "interpolate(x_0, x_1, t), vel", "interpolate(x_1, x_0, t), vel", "path reversed"),
    M("objectives/flow_matching.py", "velocity(x_0, x_1)\n", "velocity(x_1, x_0)\n", "sign of the velocity"),
    M(
        "objectives/flow_matching.py",
        "torch.where(anchored, c_FM, c[name])",
        "torch.where(anchored, c[name], c_FM)",
        "mask",
    ),
    M("objectives/flow_matching.py", "= chosen(batch, self.mixed", "= ~chosen(batch, self.mixed", "mixing reversed"),
    M(
        "objectives/flow_matching.py",
        "rows(self.time.sample(size(batch), rng), batch)",
        "self.time.sample(len(batch.x_1), rng)",
        "times: rows of a part",
    ),
    M(
        "objectives/flow_matching.py",
        "cond = self.condition.drop(cond, chosen(",
        "self.condition.drop(cond, chosen(",
        "labels not dropped",
    ),
    M("objectives/flow_matching.py", "self.distance(F, v))", "self.distance(F, v).mean())", "per sample"),
    M("objectives/flow_matching.py", "mixed: float = 0.5", "mixed: float = 0.0", "default of the mixing"),
    # samplers
    M("samplers.py", "return [i / n for i in range(n)]", "return [(i + 1) / n for i in range(n)]", "schedule late"),
    M("samplers.py", "return [i / n for i in range(n)]", "return [i / (n + 1) for i in range(n)]", "schedule early"),
    M("samplers.py", "(1 + (shift - 1) * t)", "(1 + (1 - shift) * t)", "sign in the shift"),
    M("samplers.py", "return [shift * t / (1", "return [t / (1", "factor of the shift"),
    M("samplers.py", "times[0] != 0", "times[0] < 0", "first time is not checked"),
    M(
        "samplers.py",
        "x = t * x_1_hat + (1 - t) * fresh",
        "x = (1 - t) * x_1_hat + t * fresh",
        "renoising weights swapped",
    ),
    M(
        "samplers.py",
        "x = t * x_1_hat + (1 - t) * fresh",
        "x = t * x_1_hat + (1 - t) ** 0.5 * fresh",
        "renoising weight",
    ),
    M(
        "samplers.py",
        "x = t * x_1_hat + (1 - t) * fresh_noise(i)",
        "x = t * x_1_hat + (1 - t) * fresh_noise(i - 1)",
        "draw",
    ),
    M(
        "samplers.py",
        "x = t * x_1_hat + (1 - t) * fresh_noise(i).to(x)",
        "x = t * x_1_hat + (1 - t) * x_0.to(x)",
        "noise reused",
    ),
    M("samplers.py", "x_1_hat = x + (1 - t) * _at", "x_1_hat = x - (1 - t) * _at", "sign of the jump"),
    M("samplers.py", "x_1_hat = x + (1 - t) * _at", "x_1_hat = x + t * _at", "length of the jump"),
    M("samplers.py", "        x = x + (t_next - t) * _at", "        x = x + (t - t_next) * _at", "Euler: sign"),
    M("samplers.py", "x_0.dtype)) / 2\n", "x_0.dtype))\n", "Heun: mean of the slopes"),
    M(
        "samplers.py",
        "_at(F, x_next, t_next, x_0.dtype))",
        "_at(F, x_next, t, x_0.dtype))",
        "Heun: time of the second slope",
    ),
    M(
        "samplers.py",
        "_at(F, x_next, t_next, x_0.dtype))",
        "_at(F, x, t_next, x_0.dtype))",
        "Heun: place of the second slope",
    ),
    M("samplers.py", "if t_next < 1:", "if t_next <= 1:", "Heun: correction at data"),
    M("samplers.py", "return x_1_hat.to(x_0.dtype)", "return x_1_hat", "consistency: dtype"),
    M(
        "samplers.py",
        "x, x_1_hat = x_0.double(), x_0.double()",
        "x, x_1_hat = x_0.double() * 0.99, x_0",
        "initial noise",
    ),
    # generate
    M("generate.py", "derive(seed, i, draw)", "derive(seed, draw)", "noise shared by all samples"),
    M("generate.py", "derive(seed, i, draw)", "derive(seed, i)", "noise shared by all draws"),
    M("generate.py", "derive(seed, i, draw)", "derive(i, draw)", "seed without effect"),
    M("generate.py", "i % condition.classes", "(i + 1) % condition.classes", "labels"),
    M(
        "generate.py",
        'source.task.anchor if method.head == "anchor"',
        'source.task.shortcut if method.head == "anchor"',
        "head",
    ),
    M(
        "generate.py",
        "field(source.task.shortcut), x_0",
        "field(source.task.anchor), x_0",
        "jumps from the anchor head",
    ),
    M("generate.py", "(method.nfe + 1) // 2", "method.nfe", "Heun's number of steps"),
    M(
        "generate.py",
        "noise(seed, indices, 0, source.shape)",
        "noise(seed, indices, 1, source.shape)",
        "first noise drawn again",
    ),
    M("generate.py", "cond, source.condition, guidance)", "cond, source.condition)", "guidance without effect"),
    M("seeding.py", "np.random.SeedSequence(parts)", "np.random.SeedSequence(sum(parts))", "seeds of sums"),
    # networks
    M("networks/adapters.py", "(1 - c if config.reversed_time", "(c if config.reversed_time", "time not reversed"),
    M(
        "networks/adapters.py",
        "return -out if config.reversed_time",
        "return out if config.reversed_time",
        "velocity not reversed",
    ),
    M("networks/adapters.py", "config.time_scale * (1 - c", "(1 - c", "time not scaled"),
    M("networks/adapters.py", "c = at_least_float32(t)", "c = t", "scaled time in bf16"),
    M("networks/lightning_dit.py", "eps: float = 1e-6) -> None", "eps: float = 1e-5) -> None", "eps of RMSNorm"),
    M("networks/lightning_dit.py", ".type_as(x) * self.weight", ".type_as(x)", "weight of RMSNorm"),
    M(
        "networks/lightning_dit.py",
        "h.square().mean(-1, keepdim=True)",
        "h.square().sum(-1, keepdim=True)",
        "RMSNorm: sum",
    ),
    M("networks/lightning_dit.py", "1e-6 if not affine else 1e-5", "1e-5 if not affine else 1e-6", "eps of LayerNorm"),
    M(
        "networks/lightning_dit.py",
        "torch.stack([-odd, even], dim=-1)",
        "torch.stack([odd, -even], dim=-1)",
        "RoPE: direction",
    ),
    M(
        "networks/lightning_dit.py",
        "h * self.freqs_cos + turned * self.freqs_sin",
        "h * self.freqs_sin + turned * self.freqs_cos",
        "RoPE",
    ),
    M(
        "networks/lightning_dit.py",
        "torch.cat([rows, columns], dim=-1).reshape",
        "torch.cat([columns, rows], dim=-1).reshape",
        "RoPE axes",
    ),
    M(
        "networks/lightning_dit.py",
        "torch.arange(0, per_axis, 2).float() / per_axis",
        "torch.arange(0, per_axis, 2).float() / head_dim",
        "RoPE frequencies",
    ),
    M("networks/lightning_dit.py", "PERIOD = 10_000.0", "PERIOD = 1_000.0", "period"),
    M(
        "networks/lightning_dit.py",
        "self.q_norm(q), self.k_norm(k)",
        "self.k_norm(q), self.q_norm(k)",
        "QK-norms swapped",
    ),
    M("networks/lightning_dit.py", "q, k = rope(q), rope(k)", "q = rope(q)", "RoPE on q only"),
    M("networks/lightning_dit.py", "gate, value = self.w12", "value, gate = self.w12", "SwiGLU halves swapped"),
    M("networks/lightning_dit.py", 'approximate="tanh"', 'approximate="none"', "exact GELU"),
    M("networks/lightning_dit.py", "x * (1 + scale[:, None])", "x * scale[:, None]", "scale around 0"),
    M("networks/lightning_dit.py", "else x + shift[:, None]", "else x - shift[:, None]", "sign of the shift"),
    M(
        "networks/lightning_dit.py",
        "shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts",
        "shift_2, scale_2, gate_2, shift_1, scale_1, gate_1 = parts",
        "modulation: attention and MLP swapped",
    ),
    M(
        "networks/lightning_dit.py",
        "shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts",
        "scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = parts",
        "modulation: scale and shift swapped",
    ),
    M(
        "networks/lightning_dit.py",
        "(scale_1, gate_1, scale_2, gate_2), shift_1",
        "(gate_1, scale_1, gate_2, scale_2), shift_1",
        "no-shift order",
    ),
    M("networks/lightning_dit.py", "int(2 / 3 * hidden)", "round(2 / 3 * hidden)", "hidden size of SwiGLU"),
    M(
        "networks/lightning_dit.py",
        "torch.cat([angle.cos(), angle.sin()]",
        "torch.cat([angle.sin(), angle.cos()]",
        "sinusoid order",
    ),
    M(
        "networks/lightning_dit.py",
        "device=t.device) / half)",
        "device=t.device) / (half - 1))",
        "sinusoid frequencies",
    ),
    M(
        "networks/lightning_dit.py",
        "shift, scale = self.adaLN",
        "scale, shift = self.adaLN",
        "final layer: shift and scale",
    ),
    M(
        "networks/lightning_dit.py",
        "nn.Embedding(num_classes + 1, dim)",
        "nn.Embedding(num_classes, dim)",
        "row of the null label",
    ),
    M(
        "networks/lightning_dit.py",
        "            c = c + self.y_embedder(cond)",
        "            pass",
        "label without effect",
    ),
    M(
        "networks/lightning_dit.py",
        "            c = c + self.r_embedder(r)",
        "            c = c + self.r_embedder(t)",
        "r -> t",
    ),
    M(
        "networks/lightning_dit.py",
        "self.x_embedder(x) + self.pos_embed",
        "self.x_embedder(x)",
        "positions without effect",
    ),
    M("networks/lightning_dit.py", ".permute(0, 5, 1, 3, 2, 4)", ".permute(0, 5, 2, 4, 1, 3)", "unpatchify transposed"),
    M(
        "networks/lightning_dit.py",
        ".permute(0, 5, 1, 3, 2, 4)",
        ".permute(0, 5, 1, 4, 2, 3)",
        "unpatchify within a patch",
    ),
    M(
        "networks/lightning_dit.py",
        "[:, : config.in_channels]",
        "[:, -config.in_channels :]",
        "learn_sigma: other half",
    ),
    M(
        "networks/lightning_dit.py",
        "torch.cat([columns, rows], dim=-1).reshape",
        "torch.cat([rows, columns], dim=-1).reshape",
        "grid positions",
    ),
    M(
        "networks/lightning_dit.py",
        "            zeroed.append(self.r_embedder.mlp[2])",
        "            pass",
        "r has an effect at the start",
    ),
    M("networks/lightning_dit.py", "[None], requires_grad=False)", "[None])", "positions are trained"),
    M("networks/mlp.py", "else embedded(t, r)], dim=1", "else embedded(t, t)], dim=1", "r -> t"),
    M("networks/mlp.py", "            h = h + self.labels(cond)", "            pass", "label without effect"),
    # EMA and optimiser
    M("ema.py", "np.roots([1, 7, 16 - s, 12 - s])", "np.roots([1, 7, 16 + s, 12 - s])", "gamma of sigma_rel"),
    M("ema.py", ".real.max()", ".real.min()", "root of the cubic"),
    M("ema.py", "** (gamma_of(sigma_rel) + 1)", "** gamma_of(sigma_rel)", "gamma + 1 -> gamma"),
    M("ema.py", "batch_size / (images_seen + batch_size)", "batch_size / images_seen", "clock one batch earlier"),
    M(
        "ema.py",
        "if images_seen <= batch_size:",
        "if images_seen < batch_size:",
        "first update keeps the initial weights",
    ),
    M("ema.py", "averaged], 1 - beta)", "averaged], beta)", "beta -> 1 - beta"),
    M("ema.py", "if p.requires_grad]", "]", "frozen parameters are averaged"),
    M("ema.py", "                average[name].copy_(current[name])", "                pass", "buffers are not copied"),
    M("ema.py", "value.detach().clone()", "value.detach()", "average shares its memory with the network"),
    M("ema.py", "min(t_a, t_b), gamma_a", "max(t_a, t_b), gamma_a", "overlap: min -> max"),
    M("ema.py", "gamma_a + gamma_b + 1\n", "gamma_a + gamma_b\n", "overlap: power"),
    M("ema.py", "- (gamma_b + 1) * np.log(t_b)", "- gamma_b * np.log(t_b)", "overlap: normalisation"),
    M("ema.py", "(gamma_a + 1) * (gamma_b + 1) / power", "gamma_a * gamma_b / power", "overlap: factor"),
    M("ema.py", "if s.images_seen <= images_seen]", "]", "later snapshots are used"),
    M("ema.py", "if s.images_seen <= images_seen]", "if s.images_seen < images_seen]", "the last snapshot is left out"),
    M("ema.py", "if name in changed else value", "", "frozen tables are summed"),
    M("optim.py", "(1 + math.cos(math.pi *", "(1 - math.cos(math.pi *", "cosine decay rises"),
    M("optim.py", "(min(progress, 1.0) - self.start)", "min(progress, 1.0)", "linear decay: start"),
    M(
        "optim.py",
        "min(1.0, images_seen / self.warmup_images)",
        "images_seen / self.warmup_images",
        "warm-up without an end",
    ),
    M("optim.py", "self.lr * warmup * self.decay(", "self.lr * self.decay(", "no warm-up"),
    M("optim.py", "if p.requires_grad]", "]", "frozen parameters are trained"),
    M("optim.py", "(0.9, 0.999)", "(0.9, 0.95)", "default betas"),
    # autoencoders
    M("autoencoders/kl.py", "logvar.clamp(-30.0, 20.0)", "logvar.clamp(-20.0, 20.0)", "lower bound of the variance"),
    M("autoencoders/kl.py", "torch.exp(0.5 * logvar", "torch.exp(logvar", "variance for standard deviation"),
    M("autoencoders/kl.py", "return mean + std * noise", "return mean + noise", "noise of variance 1"),
    M("autoencoders/kl.py", "F.pad(x, (0, 1, 0, 1))", "F.pad(x, (1, 0, 1, 0))", "padded left and above"),
    M("autoencoders/kl.py", "eps=1e-6", "eps=1e-5", "eps of the norms"),
    M(
        "autoencoders/kl.py",
        "return self.decoder(self.post_quant_conv(z))",
        "return self.decoder(z)",
        "post_quant_conv is left out",
    ),
    M("autoencoders/taef2.py", "LIMIT = 3.0", "LIMIT = 4.0", "limit of the latents"),
    M("autoencoders/taef2.py", "x = x + self.pool(x)", "x = self.pool(x)", "no residual around the normalised branch"),
    M(
        "autoencoders/taef2.py",
        "return self.encoder((x + 1) / 2)",
        "return self.encoder(x)",
        "range of the encoder's images",
    ),
    M(
        "autoencoders/stable_diffusion.py",
        "posterior.std * noise",
        "posterior.var * noise",
        "variance for standard deviation",
    ),
    M("autoencoders/loading.py", "[n for n in state if n not in own]", "[]", "tensors too many are accepted"),
    M(
        "autoencoders/vavae.py",
        'TRAINING = ("loss.", ',
        'TRAINING = ("loss.", "model_ema.", ',
        "another part is dropped",
    ),
    M("foreign_weights.py", "weights_only=True", "weights_only=False", "pickled code runs"),
    # latents on disk and their preparation
    M("data/latents.py", "np.zeros(len(indices), bool)", "np.ones(len(indices), bool)", "all are mirrored"),
    M(
        "data/latents.py",
        "return Statistics(plain.mean, plain.std, self.multiplier)",
        "return plain",
        "multiplier forgotten",
    ),
    M(
        "data/latents.py",
        "shard.labels >= self.num_classes",
        "shard.labels > self.num_classes",
        "a label too high by 1",
    ),
    M("data/shards.py", ".st_size != expected:", ".st_size < expected:", "too long a file"),
    M(
        "data/shards.py",
        '(values.view(torch.bfloat16) if dtype == "BF16" else values)',
        "values",
        "bf16 read as integers",
    ),
    M("data/crop.py", ">= 2 * size", "> 2 * size", "no halving at twice the size"),
    M("data/crop.py", "Resampling.BOX", "Resampling.BICUBIC", "halving: filter"),
    M("data/stream.py", "self.dataset.flip and hasattr(", "hasattr(", "mirrored unasked"),
    M("data/manifest.py", "if identity != manifest.identity:", "if False:", "another autoencoder"),
    M("prepare/encode.py", "derive(seed, i, flip)", "derive(seed, i)", "the mirrored image has the same noise"),
    M("prepare/encode.py", "pixels.flip(-1) if", "pixels.flip(-2) if", "mirrored upside down"),
    M("prepare/encode.py", "if bad.any():", "if bad.all():", "one latent is not finite"),
    M(
        "prepare/moments.py",
        "self.squares / self.count - self.mean**2",
        "self.squares / self.count",
        "variance about 0",
    ),
    M("prepare/shard.py", "sums(latents), sums(latents_flip)", "sums(latents), sums(latents)", "statistics: mirrored"),
    M("prepare/latents.py", "count = 2 * settings.n", "count = settings.n", "statistics: number of values"),
    M("prepare/latents.py", "mine = todo[world.rank :: world.ranks]", "mine = todo", "every rank encodes all"),
    M("prepare/settings.py", "if differing:", "if False:", "other settings are mixed in"),
    M("prepare/verify.py", "if not off < CLOSE:", "if False:", "wrong statistics"),
    # published networks
    M(
        "networks/variance_preserving.py",
        "torch.where(anchor, 2 - c, c)",
        "torch.where(anchor, c - 1, c)",
        "c_FM: time reversed",
    ),
    M("networks/variance_preserving.py", "t=torch.where(anchor, -tau, tau)", "t=tau", "c_FM: not told apart"),
    M(
        "networks/variance_preserving.py",
        "x_1 = sample / alpha - last.exp().to(a.dtype) * eps",
        "x_1 = sample / alpha - eps",
        "endpoint: noise",
    ),
    M(
        "networks/variance_preserving.py",
        "below = (x_1 - x_t) / (1 - a.clamp(max=t_min))",
        "below = x_1 - x_t",
        "endpoint: 1 - t",
    ),
    M("networks/variance_preserving.py", "torch.where(a < t_min, below,", "torch.where(a < 0, below,", "no endpoint"),
    M(
        "networks/variance_preserving.py",
        "torch.rsqrt(1 + (2 * last).exp())",
        "torch.rsqrt(1 + last.exp())",
        "alpha of the last timestep",
    ),
    M(
        "networks/variance_preserving.py",
        "(ratio - low) / (high - low)",
        "((ratio - low) / (high - low)).detach()",
        "timestep: derivative",
    ),
    M(
        "networks/variance_preserving.py",
        "t = torch.clamp(t.double(), t_min, t_max)",
        "t = t.double()",
        "timestep: not clamped",
    ),
    M("networks/published_sizes.py", "reversed_time=True)", "reversed_time=False)", "REPA: time"),
    M("published/families.py", 'return found, found == "facm"', 'return found, found != "facm"', "shortcut: reversed"),
    M("published/layouts.py", "sorted(found, reverse=True)", "sorted(found)", "the shortest EMA first"),
    M(
        "published/architecture.py",
        "_shape(shapes, labels, 2, path)[0] - 1",
        "_shape(shapes, labels, 2, path)[0]",
        "the null label is a class",
    ),
    M(
        "published/architecture.py",
        "(width, blocks) == (hidden, depth)",
        "width == hidden",
        "heads: depth is not looked at",
    ),
    M("published/own.py", r"facm\.networks\.\w+:\w+", r"facm\.networks\..*", "any name is built"),
    M(
        "trained.py",
        "found.learns_shortcut if learns_shortcut is None else learns_shortcut",
        "found.learns_shortcut",
        "load_file: what the user says",
    ),
    # evaluation
    M(
        "evaluation/extraction.py",
        'levels.round() if how == "round" else levels.floor()',
        'levels.floor() if how == "round" else levels.round()',
        "rounding swapped",
    ),
    M("evaluation/inception_score.py", "RandomState(seed)", "RandomState(seed + 1)", "order of the samples"),
    M("evaluation/inception_score.py", "scores.std(correction=0)", "scores.std()", "std over n - 1"),
    M("evaluation/kernel.py", "k.sum() - k.diagonal().sum()", "k.sum()", "a sample is paired with itself"),
    M("evaluation/kernel.py", "inner * inner * inner", "inner * inner", "power of the kernel"),
    M(
        "evaluation/kernel.py",
        "- 2 * float(_kernel(x, y).mean())",
        "- float(_kernel(x, y).mean())",
        "factor between the sets",
    ),
    M("evaluation/metrics.py", "if n != PUBLISHED_N:", "if n < 2:", "any n is comparable"),
    M("evaluation/metrics.py", "x = as_stored(x, self._quantise)", "x = as_stored(x)", "truncation forgotten"),
    M("evaluation/reference.py", "assumed=features is None", "assumed=True", "own features are assumed"),
    M("evaluation/reference.py", "allow_pickle=False", "allow_pickle=True", "pickled code runs"),
    M("generate.py", "derive(seed, i, 0, 1)", "derive(0, i, 0, 1)", "random labels: seed"),
    # latents to and from what the network sees
    M(
        "statistics.py",
        "(z - self._like(self.mean, z)) /",
        "(z + self._like(self.mean, z)) /",
        "standardise: sign of the mean",
    ),
    M(
        "statistics.py",
        "(z - self._like(self.mean, z)) / self._like(self.std, z) * self",
        "(z / self._like(self.std, z) - self._like(self.mean, z)) * self",
        "standardise: order",
    ),
    M(
        "statistics.py",
        "self._like(self.std, z) * self.multiplier",
        "self._like(self.std, z)",
        "standardise: multiplier",
    ),
    M("statistics.py", "x / self.multiplier * self._like", "x * self._like", "restore: multiplier"),
    M(
        "statistics.py",
        "self._like(self.std, x) + self._like(self.mean, x)",
        "self._like(self.std, x) - self._like(self.mean, x)",
        "restore: sign of the mean",
    ),
    M(
        "statistics.py",
        "if not (mean.ndim == 4 and mean.numel() == mean.shape[1] and std.shape == mean.shape):",
        "if False:",
        "file: shapes",
    ),
    M("statistics.py", 'digest.update(f"{self.multiplier}".encode())', "pass", "fingerprint: multiplier"),
    M("decoding.py", "self.statistics.restore(part.float())", "part.float()", "latents are not restored"),
    M("decoding.py", ".clamp(-1, 1)", "", "images are not clamped"),
    M("decoding.py", "built.channels != dataset.shape[0]", "False", "channels are not compared"),
    # rivals
    M("objectives/mean_flow.py", "expand(r - t, v) * dF", "expand(t - r, v) * dF", "sign of the tangent's term"),
    M("objectives/mean_flow.py", "expand(r - t, v) * dF", "expand(1 - t, v) * dF", "interval ends at r"),
    M("objectives/mean_flow.py", "NormL2(self.p, self.c)", "NormL2(self.p)", "c of the weight"),
    M("objectives/scm.py", "ramp * (1 - expand(t, v)) * dF", "(1 - expand(t, v)) * dF", "warm-up of the tangent"),
    M("objectives/scm.py", "ramp * (1 - expand(t, v)) * dF", "ramp * expand(t, v) * dF", "factor of the tangent"),
    M(
        "objectives/scm.py",
        "g.square().flatten(1).mean(1).sqrt(), g) +",
        "g.square().flatten(1).sum(1).sqrt(), g) +",
        "norm",
    ),
    M("objectives/scm.py", "w.exp() * error - w", "w.exp() * error + w", "sign of the learned weight"),
    M("objectives/scm.py", "w.exp() * error - w", "w.exp().mean() * error - w", "weight per sample"),
    M("networks/lightning_dit.py", "return -self.logvar(t)", "return self.logvar(t)", "head: sign"),
    M("training.py", "run.objective if at is None else at(state.images)", "run.objective", "the objective's clock"),
    # files that are not what they say
    M("data/webdataset.py", "_check_end(path, tar.offset)", "pass", "end of a tar"),
    M("data/webdataset.py", "elif sample.label >= 0 and (", "elif False and (", "labels that contradict"),
    M("data/manifest.py", "        _check_not_interrupted(folder)\n", "", "unfinished preparation"),
    M("data/manifest.py", "    if twice:", "    if False:", "a shard named twice"),
    M("data/latents.py", "[*parts, statistics.fingerprint]", "parts", "fingerprint: statistics"),
    M("data/pictures.py", "if min(image.size) < size:", "if max(image.size) < size:", "small images"),
    M("prepare/shard.py", "if digest != _digest(content):", "if False:", "damaged records"),
    M("prepare/verify.py", "elif record is not None and not _fits(record, found):", "elif False:", "sums of a shard"),
    # Studies
    M(
        "studies/summary.py",
        "if self.known and len(self.known) == len(self.values) else None",
        "if self.known else None",
        "a mean over the survivors",
    ),
    M(
        "studies/summary.py",
        "None if a is None or b is None else a - b",
        "None if a is None or b is None else b - a",
        "paired differences",
    ),
    M("studies/summary.py", 'history[-1]["skipped"] > 0', 'history[-1]["skipped"] > 1', "a skipped step"),
    M(
        "studies/summary.py",
        "(start is None or end < start)",
        "(start is None or end <= start)",
        "no better than the start",
    ),
    M("studies/summary.py", ' if record["images"] > STEADY * images]', "]", "warm-up"),
    M(
        "studies/table.py",
        "value > 0 for value in difference.known",
        "value >= 0 for value in difference.known",
        "worse in",
    ),
    M("studies/execute.py", '"guidance": to_json(NO_GUIDANCE),', "", "a user's own rows"),
    M("studies/execute.py", "for row in reversed(rows)", "for row in rows", "the newest row"),
    M(
        "studies/execute.py",
        "if stopped(path) is None and not trained_whole(path):",
        "if not trained_whole(path):",
        "collapsed is not tried again",
    ),
    M("studies/execute.py", "load_trained(path, images=want.images)", "load_trained(path)", "a clock"),
    M(
        "studies/study.py",
        'if "budget" in study.free else ("images",)',
        'if "budget" in study.free else ()',
        "equal images",
    ),
    M("studies/study.py", 'elif "teacher" not in study.free and', "elif", "teachers are studied"),
    M("studies/study.py", "if teacher.data != entry.run.data:", "if False:", "a teacher's data"),
    M(
        "studies/study.py",
        'names = ("data", "objective",',
        'names = ("data", "network", "objective",',
        "networks of teachers",
    ),
    M("studies/cost.py", "at(run.images // 2)", "at(0)", "a schedule's cost"),
    M("studies/cost.py", "loss.total.backward()", "pass", "backward counts"),
    M("studies/cost.py", "with borrowed_generators(0), sdpa_kernel", "with sdpa_kernel", "global generators"),
    M("studies/collapse.py", "alpha=One(), beta=One(), clamp=None", "alpha=One(), clamp=None", "plain L2"),
    M("studies/weights.py", "OneMinusPower(0.5), One(), 1.42", "OneMinusPower(0.5), One(), 1.40", "Table 4"),
    M("networks/adapters.py", 'if f.name != "network")', 'if f.name == "network")', "an adapter's settings"),
    M("run.py", "if f.init and not _at_default(f, getattr(value, f.name))]", "if f.init]", "defaults are left out"),
    M("run.py", "bool(to_json(value) == to_json(field.default))", "bool(value == field.default)", "as recorded"),
    M("generate.py", 'not getattr(objective, "learns_flow", True)', "False", "a velocity never trained"),
    M(
        "distances.py",
        "return self.weight * self.distance(prediction, target)",
        "return self.distance(prediction, target)",
        "Scaled",
    ),
    M("trained.py", "if length == sigma_rel}", "}", "an EMA's snapshot"),
    # CIFAR-10 and its published networks
    M(
        "networks/edm.py",
        "return (torch.log1p(-t) - torch.log(t)) / 4",
        "return (torch.log1p(-t) - torch.log(t)) / 2",
        "c_noise = ln(sigma)/4",
    ),
    M("networks/edm.py", "1 / (1 + sigma_max), 1 / (1 + sigma_min))", "1 / (1 + sigma_max), 1 - 1e-7)", "sigma_min"),
    M(
        "networks/edm.py",
        "return torch.where(c > 1, math.log(self.config.sigma_min) / 2 - noise, noise)",
        "return torch.where(c > 1, -noise, noise)",
        "the anchor's condition",
    ),
    M("networks/edm.py", "variance * a.square()", "a.square()", "S^2"),
    M("networks/edm.py", "+ self.config.sigma_data / S * G", "- self.config.sigma_data / S * G", "sign of G"),
    M("networks/edm.py", 'arguments["r"] = self._condition(r)', 'arguments["r"] = r', "r told as noise"),
    M("networks/edm.py", "a = expand(torch.where(c > 1, 2 - c, c), x_t)", "a = expand(c, x_t)", "the anchor's time"),
    M(
        "published/persistence.py",
        'raise Refused(f"{module}.{name}") from None',
        "return super().find_class(module, name)",
        "a pickle names anything",
    ),
    M("published/persistence.py", "weights_only=True", "weights_only=False", "tensors inside a pickle"),
    M(
        "published/persistence.py",
        "torch.as_strided(numbers, size, stride, offset)",
        "torch.as_strided(numbers, size, stride, 0)",
        "a tensor's offset",
    ),
    M(
        "published/persistence.py",
        "not isinstance(inner, Record) or id(inner) in seen",
        "not isinstance(inner, Record)",
        "cycles in a module tree",
    ),
    M(
        "published/edm_pickle.py",
        "if not _same(module.state.get(name), expected):",
        "if False:",
        "a module's constants",
    ),
    M("published/edm_pickle.py", "if not _same(arguments[name], expected):", "if False:", "a network's arguments"),
    M("published/edm_pickle.py", "if held != [0.25] * 4:", "if False:", "the resampling filter"),
    M(
        "networks/ddpm_pp.py",
        "torch.cat([angle.sin(), angle.cos()], dim=1)",
        "torch.cat([angle.cos(), angle.sin()], dim=1)",
        "order of the embedding",
    ),
    M("networks/ddpm_pp.py", "    t = at_least_float32(t)", "    t = t", "time in half precision"),
    M(
        "networks/ddpm_pp.py",
        "(self.proj(self._attended(h)) + h) * SUM",
        "(self.proj(self._attended(h)) + h)",
        "sqrt(1/2)",
    ),
    M(
        "networks/ddpm_pp.py",
        "one_hot * math.sqrt(config.num_classes)",
        "one_hot * config.num_classes",
        "scale of labels",
    ),
    M("networks/ddpm_pp.py", "config.num_classes + 1)[:, :-1]", "config.num_classes + 1)[:, 1:]", "the null label"),
    M("networks/ddpm_pp.py", "EPS = 1e-6", "EPS = 1e-5", "eps of the norms"),
    M(
        "networks/ddpm_pp.py",
        "attends = index == config.blocks and size in config.attention",
        "attends = size in config.attention",
        "attention on the way up",
    ),
    M("networks/ddpm_pp.py", "shift = pixel_norm(shift)", "shift = shift", "pixel norm"),
    M(
        "networks/simple_edm.py",
        'times = {"t": t} if r is None',
        'times = {"t": torch.where(t > 1, 2 - t, t)} if r is None',
        "G gets c itself",
    ),
    M("networks/simple_edm.py", "(2 * a - 1) / square * x_t", "(2 * a - 1) / square.sqrt() * x_t", "s^2"),
    M("networks/simple_edm.py", "x_t * scale / sigma_data**2", "x_t * scale / sigma_data", "G's input"),
    M("networks/simple_edm.py", "scale * at_least_float32(G)", "scale.to(x.dtype) * G", "G in float32"),
    M(
        "blocks.py",
        "_outermost(nn.ModuleList, network) or _outermost(",
        "_outermost(nn.ModuleList, network) + _outermost(",
        "blocks of a network without lists",
    ),
    M("recipes/cifar10.py", "teacher=source if distils else None", "teacher=source", "who distils"),
]


@dataclass
class Workplace:
    """A copy of the package and its tests, in which one mutant at a time is tried."""

    root: Path

    @classmethod
    def copy_to(cls, root: Path) -> Workplace:
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for folder in ("src", "tests", "examples"):
            shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignore)
        shutil.copy(REPOSITORY / "pyproject.toml", root)
        return cls(root)

    def source(self, file: str) -> Path:
        return self.root / "src" / "facm" / file

    def stages(self, files: Iterable[str]) -> list[list[str]]:
        """The test files to run: those that most likely notice a mutation of one of ``files``, then the maths'."""
        tests = sorted(map(str, (self.root / "tests").glob("test_*.py")))
        hints = [next((words for key, words in FIRST.items() if file.startswith(key)), []) for file in files]
        words = dict.fromkeys(word for these in hints for word in these)
        likely = [test for word in words for test in tests if test.endswith(f"_{word}.py")]
        maths = [test for test in tests if "test_maths_" in test or test.endswith("test_golden.py")]
        return [stage for stage in (likely, [test for test in maths if test not in likely]) if stage]


class FirstFailure:
    """A pytest plugin that remembers the first test that failed, or the first file that could not be imported."""

    def __init__(self) -> None:
        self.name = SURVIVED

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid

    pytest_collectreport = pytest_runtest_logreport


def run_tests(workplace: Workplace, stages: Iterable[list[str]]) -> str:
    """In a forked child: the first failing test, or SURVIVED."""
    import pytest

    os.chdir(workplace.root)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(workplace.root / "src"))
    facm = importlib.import_module("facm")
    if not Path(str(facm.__file__)).is_relative_to(workplace.root):
        raise RuntimeError(f"imported {facm.__file__}, not the copy in {workplace.root}")
    for stage in stages:
        failure = FirstFailure()
        options = ["-x", "-q", "--tb=no", "--no-header", "-k", TESTS, "-p", "no:cacheprovider", "-p", "no:xdist"]
        code = pytest.main([*options, "--rootdir", str(workplace.root), *stage], plugins=[failure])
        if code != 0:
            return failure.name or f"pytest exited with {int(code)}"
    return SURVIVED


@dataclass
class Child:
    """A forked process that tries one mutant; ``result`` is a pipe from it."""

    mutant: Mutant | None
    workplace: Workplace
    pid: int
    result: int
    original: str
    began: float = field(default_factory=time.monotonic)


def start(mutant: Mutant | None, workplace: Workplace, files: Iterable[str]) -> Child:
    """Run the tests of ``files``, mutated or not."""
    original = ""
    if mutant is not None:
        path = workplace.source(mutant.file)
        original = path.read_text()
        path.write_text(original.replace(mutant.old, mutant.new))
    stages = workplace.stages(files)
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return Child(mutant, workplace, pid, read, original)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        outcome = run_tests(workplace, stages)
    except BaseException as error:  # anything that escapes is a failure, and os._exit must be reached
        outcome = f"{type(error).__name__}: {error}"
    os.write(write, (FINISHED + outcome).encode()[:4000])
    os._exit(0)


def collect(child: Child) -> str | None:
    """The outcome if the child has ended (or hung for too long), else None; the source is as it was again."""
    ended, _ = os.waitpid(child.pid, os.WNOHANG)
    if not ended and (child.mutant is None or time.monotonic() - child.began <= TIMEOUT):
        return None
    if not ended:
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
    with os.fdopen(child.result) as pipe:
        reported = pipe.read()
    if child.mutant is not None:
        child.workplace.source(child.mutant.file).write_text(child.original)
    if reported.startswith(FINISHED):
        return reported.removeprefix(FINISHED)
    return "the tests crashed" if ended else f"no answer within {TIMEOUT} s"


def stale(mutants: Iterable[Mutant]) -> list[str]:
    """Mutants whose old text does not occur exactly once."""
    paths = {m.file: REPOSITORY / "src" / "facm" / m.file for m in mutants}
    sources = {file: path.read_text() if path.exists() else "" for file, path in paths.items()}
    counts = {m: sources[m.file].count(m.old) for m in mutants}
    return [f"{m.name}: {m.old!r} occurs {n} times, expected once" for m, n in counts.items() if n != 1]


def try_all(mutants: list[Mutant], jobs: int) -> tuple[int, int]:
    """(killed, survived)"""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        free = [Workplace.copy_to(Path(folder) / str(i)) for i in range(jobs)]
        child = start(None, free[0], sorted({mutant.file for mutant in mutants}))
        while (failed := collect(child)) is None:
            time.sleep(0.05)
        if failed:
            raise SystemExit(f"without any mutation the tests fail: {failed}")
        print(f"without mutation: passed in {time.monotonic() - child.began:.0f} s", flush=True)

        waiting, running, survivors = list(reversed(mutants)), list[Child](), []
        while waiting or running:
            while waiting and free:
                mutant = waiting.pop()
                running.append(start(mutant, free.pop(), [mutant.file]))
            time.sleep(0.02)
            for child in list(running):
                outcome = collect(child)
                if outcome is None:
                    continue
                running.remove(child)
                free.append(child.workplace)
                assert child.mutant is not None
                verdict = "SURVIVED" if outcome == SURVIVED else "killed"
                if outcome == SURVIVED:
                    survivors.append(child.mutant)
                seconds = time.monotonic() - child.began
                print(f"{verdict:8} {seconds:5.1f} s  {child.mutant.name}  {outcome.split('tests/')[-1]}", flush=True)
    return len(mutants) - len(survivors), len(survivors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="only mutants whose file or description contains one")
    parser.add_argument("--list", action="store_true", help="name them, check that each still fits the source, and end")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at a time")
    arguments = parser.parse_args()
    mutants = [m for m in MUTANTS if any(part in m.name for part in arguments.only)]
    if not mutants:
        raise SystemExit(f"--only {' '.join(arguments.only)}: no mutant has it in its name")
    if problems := stale(MUTANTS):
        raise SystemExit("\n".join(problems))
    if arguments.list:
        print("\n".join(m.name for m in mutants), f"{len(mutants)} mutants", sep="\n")
        return

    import torch  # once, for all children; the package itself is imported by each child from its own copy

    importlib.import_module("safetensors.torch")
    torch.set_num_threads(1)
    torch.func.jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))  # loads what forward mode needs
    assert "facm" not in sys.modules
    killed, survived = try_all(mutants, arguments.jobs)
    print(f"{killed} killed, {survived} survived")
    raise SystemExit(1 if survived else 0)


if __name__ == "__main__":
    main()

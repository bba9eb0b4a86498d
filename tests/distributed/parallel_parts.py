"""Small parts that the tests of many processes share: runs, and a way to call a function on several ranks.

    call(2, "tests.distributed.test_x", "function", *arguments) -> what each rank returned

Each rank is a process of its own that imports the test's module and calls ``function(*arguments)``; arguments and
results travel as JSON. The ranks meet over gloo on localhost.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.paths import ROOT

PACKAGE = str(Path(importlib.import_module("facm").__file__ or "").resolve().parents[1])  # this one, in every process
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": os.pathsep.join((PACKAGE, str(ROOT))),
    "CUDA_VISIBLE_DEVICES": "",
}


_RESERVED: list[socket.socket] = []


def reserved_port() -> int:
    """A port that nobody else is given while this process lives; the ranks may listen on it, since nobody else does."""
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    _RESERVED.append(probe)
    return int(probe.getsockname()[1])


def start(ranks: int, module: str, function: str, *arguments: Any, **environment: str) -> list[subprocess.Popen[str]]:
    """The processes, running."""
    return _start(
        ranks, ["-m", "tests.distributed.parallel_parts", module, function, json.dumps(arguments)], environment
    )


def facm(ranks: int, *arguments: Any) -> tuple[int, str, str]:
    """``facm ARGUMENTS`` on all ranks, without torchrun, which takes as long to start as they do: (the first exit
    status that is not 0, the stdout of all, their stderr)."""
    done = finish(_start(ranks, ["-m", "facm", *map(str, arguments)], {}))
    return max(code for code, _, _ in done), "".join(out for _, out, _ in done), "".join(err for _, _, err in done)


def _start(ranks: int, command: list[str], environment: dict[str, str]) -> list[subprocess.Popen[str]]:
    port = str(reserved_port())
    common = ENVIRONMENT | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)} | environment
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def finish(processes: list[subprocess.Popen[str]], timeout: float = 400) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each; all are ended when the time is up."""
    end = time.monotonic() + timeout
    try:
        for process in processes:
            process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    said = [process.communicate() for process in processes]
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, said, strict=True)]


def call(ranks: int, module: str, function: str, *arguments: Any, timeout: float = 400) -> list[Any]:
    """What ``function`` returned on each rank. Fails with its output where one did not end well."""
    with tempfile.TemporaryDirectory() as results:
        done = finish(start(ranks, module, function, *arguments, RESULTS=results), timeout)
        bad = [f"rank {rank}: exit {code}\n{out}\n{err}" for rank, (code, out, err) in enumerate(done) if code]
        assert not bad, "\n".join(bad)
        return [json.loads((Path(results) / str(rank)).read_text()) for rank in range(ranks)]


def torchrun(ranks: int, *arguments: Any, timeout: float = 400, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """``torchrun -m -- facm ARGUMENTS``: (exit status, stdout, stderr). Without -- it would take --n for its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone", *options]
    process = subprocess.Popen(
        [*command, "-m", "--", "facm", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return finish([process], timeout)[0]


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Awake:
    """A transformer of 4 tokens in which every block has an effect from the first step on: as it is initialised, it
    would be the identity and its tangent nearly nothing. With QK-norm: without it the keys' bias has no effect, its
    gradient is rounding, and Adam makes steps of that."""

    depth: int = 1
    auxiliary_time: bool = False
    weight_head: bool = False

    def build(self) -> Any:
        import torch

        from facm.networks.lightning_dit import LightningDiT

        fewer_operations: dict[str, Any] = dict.fromkeys(("swiglu", "rope"), False)
        heads = {"auxiliary_time": self.auxiliary_time, "weight_head": self.weight_head}
        network = LightningDiT(8, 4, 1, 16, self.depth, 2, num_classes=10, **fewer_operations, **heads).build()
        for name, p in network.named_parameters():
            if any(part in name for part in ("adaLN", "final_layer", "r_embedder", "AdaLoss")):
                p.data += 0.1 * torch.randn_like(p)
        return network


def moons_run(**changes: Any) -> Any:
    """Flow matching on two moons, with a checkpoint halfway."""
    from facm import FlowMatching, Labels, Run
    from facm.data import Moons
    from facm.networks.mlp import MLP
    from facm.runs.config import Intervals

    network = MLP(width=16, depth=2, num_classes=2)
    run = Run(network, Moons(n=99), FlowMatching(Labels(2)), 160, 16, every=Intervals(80, 80, 80))
    return dataclasses.replace(run, **changes)


def teacher_run(**changes: Any) -> Any:
    """Flow matching on noise, which takes no time to open, with a transformer small enough for a step in some
    milliseconds."""
    from facm import FlowMatching, Labels, Run
    from facm.data import Noise
    from facm.runs.config import Intervals
    from facm.runs.optim import AdamW

    run = Run(
        network=Awake(),
        data=Noise((1, 8, 8), num_classes=10),
        objective=FlowMatching(Labels(10)),
        images=160,
        batch_size=16,
        optimizer=AdamW(lr=1e-3, warmup_images=64),
        every=Intervals(log=112, checkpoint=80, ema_snapshots=80, keep=2),
    )
    return dataclasses.replace(run, **changes)


def student_run(teacher: Path | str, derivative: str = "NoGraph", **changes: Any) -> Any:
    """FACM, distilled from a finished teacher."""
    import facm.derivative
    from facm import FACM, FromRun, Labels

    strategy = getattr(facm.derivative, derivative)()
    objective = FACM(Labels(10), derivative=strategy)
    source = FromRun(str(teacher))
    return teacher_run(**({"objective": objective, "teacher": source, "initial": source} | changes))


def train_in(path: Path | str, run: Any, engine: Any = None, world: Any = None, **options: Any) -> Any:
    """Train, or go on, in ``path``; its folder."""
    from facm.distributed.collectives import by_first
    from facm.distributed.engine import Engine
    from facm.distributed.process_group import ALONE
    from facm.runs.folder import RunFolder, create_or_continue
    from facm.training.loop import train

    world = world or ALONE
    recipe = ROOT / "tests" / "distributed" / "recipe_of_parts.py"
    by_first(world, lambda: create_or_continue(Path(path), run, "recipe_of_parts.py:run", recipe) and None)
    train(run, RunFolder(Path(path)), engine=engine or Engine(), world=world, **options)
    return RunFolder(Path(path))


def log_of(folder: Any) -> list[dict[str, Any]]:
    from facm.runs import log as logs

    return [{k: v for k, v in record.items() if k not in logs.TIMED} for record in logs.read(folder.log)]


def contents(folder: Any) -> dict[str, Any]:
    """name -> hash of all tensors, of every checkpoint and snapshot; and the log."""
    from facm.core.hashing import digest
    from facm.runs.checkpointer import load

    files = [*folder.checkpoints(), *(file for _, _, file in folder.ema_snapshots())]
    return {file.name: digest(load(file).tensors) for file in files} | {"log": repr(log_of(folder))}


def difference(a: Any, b: Any) -> float:
    """The largest difference between the newest checkpoints of two folders, of every tensor but random states."""
    from facm.runs.checkpointer import load

    x, y = (load(folder.checkpoints()[-1]).tensors for folder in (a, b))
    names = [name for name in x if not name.startswith(("rng/", "window/"))]
    assert names == [name for name in y if not name.startswith(("rng/", "window/"))] or set(names) <= set(y)
    return max(float((x[name].double() - y[name].double()).abs().max()) for name in names)


def close_logs(a: Any, b: Any, tolerance: float) -> None:
    import pytest

    for x, y in zip(log_of(a), log_of(b), strict=True):
        assert x.keys() == y.keys()
        for name, value in x.items():
            assert value == pytest.approx(y[name], rel=tolerance, abs=tolerance), name


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    module, function, arguments = sys.argv[1:]
    result = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    Path(os.environ["RESULTS"], os.environ["RANK"]).write_text(json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    # Now and then a thread of torch's is still there while the interpreter ends, which aborts a process whose answer is
    # written. How commands end is tested by those that start them with torchrun.
    os._exit(0)

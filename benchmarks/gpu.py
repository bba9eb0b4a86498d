"""All that has to be shown on a GPU, in one command: is it right, how fast is a step, the memory plan, the kernel.

    python benchmarks/gpu.py --out results/gpu                    # all rows, 9 minutes at most each
    python benchmarks/gpu.py --out results/gpu --only kernel plan # some
    python benchmarks/gpu.py --out /tmp/gpu --toy --device cpu    # toy sizes, the kernel in Triton's interpreter

Each row is a process of its own with a limit of time, and goes to OUT.jsonl as soon as it ends: device, torch, commit,
command, seconds, numbers, and whether its bounds held. Started again, the command goes on with the rows that are
missing for this device, commit and size; --again measures all. OUT.md is the table of the newest of each, which is
also printed. Rows that need CUDA say so on a CPU. Exit status 1 where a row is not "ok" and not "needs CUDA".
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 540
UNMEASURED = "runs; its numbers need CUDA"
BATCHES = (32, 64, 128, 256)
STRATEGIES = ("naive", "chain", "chain+checkpoint", "chain+compile")
STRATEGIES += ("op_level", "op_level+checkpoint", "op_level+compile", "op_level+checkpoint+compile")


@dataclass(frozen=True)
class Row:
    """One measurement.

    name: what --only calls it. section: 1 right, 2 step, 3 plan, 4 kernel. command: what is run, after the interpreter;
    ``{json}`` is a file that the command writes, without which its last line is taken. cuda: whether it needs one.
    """

    name: str
    section: int
    command: tuple[str, ...]
    cuda: bool = False
    interpreter: bool = False


def rows(device: str, toy: bool, peak_tflops: float) -> list[Row]:
    size = "toy" if toy else "full"

    def own(row: str, section: int, *more: str, interpreter: bool = False) -> Row:
        command = ("-c", "from benchmarks.gpu_rows import main; main()", row, device, size, *more)
        return Row("-".join((row, *more[:2])), section, command, interpreter=interpreter)

    found = [
        Row("pytest-gpu", 1, ("-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests"), cuda=True),
        own("kernel", 1, interpreter=device == "cpu"),
        *(own(name, 1) for name in ("bf16", "compiled", "resume", "fsdp")),
    ]
    for batch in (4,) if toy else BATCHES:
        for strategy in STRATEGIES if batch == BATCHES[0] or toy else STRATEGIES[-4:]:
            found.append(own("step", 2, strategy, str(batch), str(peak_tflops)))
    found += [own("profile", 2), own("plan", 3)]
    for dtype in ("bfloat16", "float32"):
        command = ("benchmarks/attention_tangent.py", "--dtype", dtype, "--longest", "32768", "--json", "{json}")
        found.append(Row(f"attention-{dtype}", 4, command, cuda=True))
    return found


def described(device: str) -> dict[str, Any]:
    """What a row's numbers depend on."""
    import torch

    def git(*words: str) -> str:
        done = subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else ""),
    }


def measured(row: Row, limit: float) -> dict[str, Any]:
    """Its numbers, or why there are none. The whole group of its processes ends with the limit."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    if row.interpreter:
        environment["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as home:
        file, log = Path(home) / "row.json", Path(home) / "log"
        command = [sys.executable, *(word.format(json=file) if word == "{json}" else word for word in row.command)]
        began = time.monotonic()
        with log.open("w") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return {"state": f"ended after {limit:.0f} s", "seconds": limit}
        seconds, said = round(time.monotonic() - began, 1), log.read_text(errors="replace")
        if process.returncode:
            return {"state": "failed", "seconds": seconds, "said": said[-2000:]}
        numbers = _numbers(row, file, said)
    state = numbers.pop("state", "ok" if numbers.get("ok", True) else "out of bounds")
    return {"state": state, "seconds": seconds, "numbers": numbers}


def _numbers(row: Row, file: Path, said: str) -> dict[str, Any]:
    if "{json}" in row.command:
        found = json.loads(file.read_text())
        return found if isinstance(found, dict) else {"rows": found}
    last = said.strip().splitlines()[-1]
    return json.loads(last) if last.startswith("{") else {"said": last}


def _short(numbers: Any, depth: int = 0) -> str:
    """Numbers for a cell of the table."""
    if isinstance(numbers, float):
        return f"{numbers:.3g}"
    if isinstance(numbers, dict):
        return ", ".join(f"{k} {_short(v, depth + 1)}" for k, v in numbers.items() if k != "ok" and not _long(v, depth))
    if isinstance(numbers, list):
        return "; ".join(_short(v, depth + 1) for v in numbers)
    return str(numbers)


def _long(value: Any, depth: int) -> bool:
    return depth > 2 and isinstance(value, dict | list)


def table(records: list[dict[str, Any]]) -> str:
    lines = ["| | row | state | s | numbers |", "|---|---|---|---|---|"]
    for r in sorted(records, key=lambda r: r["section"]):
        text = _short(r.get("numbers", {}))
        lines.append(f"| {r['section']} | {r['row']} | {r['state']} | {r.get('seconds', '')} | {text} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="OUT.jsonl and OUT.md are written")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="small sizes, to try it")
    parser.add_argument("--only", nargs="+", metavar="ROW")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a row may take")
    parser.add_argument("--again", action="store_true", help="also rows that are there")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, for MFU (H100, bf16: 989)")
    options = parser.parse_args()
    all_rows = rows(options.device, options.toy, options.peak_tflops)
    names = [row.name for row in all_rows]
    if wrong := set(options.only or ()) - set(names):
        raise SystemExit(f"--only {' '.join(sorted(wrong))}: expected of {', '.join(names)}")
    if options.device == "cpu" and not options.toy:
        raise SystemExit("--device cpu without --toy: sizes are a GPU's")
    about = described(options.device) | {"toy": options.toy}
    file = options.out.with_suffix(".jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    before = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    newest = {r["row"]: r for r in before if all(r.get(k) == v for k, v in about.items())}
    for row in all_rows:
        if options.only and row.name not in options.only:
            continue
        if row.name in newest and newest[row.name]["state"] == "ok" and not options.again:
            continue
        if row.cuda and options.device == "cpu":
            record: dict[str, Any] = {"state": "needs CUDA"}
        elif row.interpreter and importlib.util.find_spec("triton") is None:
            record = {"state": "needs triton"}
        else:
            record = measured(row, options.limit)
        record = {"row": row.name, "section": row.section, **about, "date": time.strftime("%Y-%m-%d"), **record}
        record["command"] = " ".join(row.command)
        newest[row.name] = record
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        print(f"{row.name}: {record['state']}" + (f"\n{record['said']}" if "said" in record else ""), flush=True)
    text = table([newest[name] for name in names if name in newest])
    title = f"{about['device']}, torch {about['torch']}, commit {about['commit']}{', toy sizes' * options.toy}"
    options.out.with_suffix(".md").write_text(f"{title}\n\n{text}\n", encoding="utf-8")
    print(f"\n{title}\n{text}")
    if any(r["state"] not in ("ok", "needs CUDA", "needs triton", UNMEASURED) for r in newest.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

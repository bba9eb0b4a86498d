"""One student of two experts (A) against a pair (B), on the miniature of ``facm demo text``.

    facm demo text --out demo
    python benchmarks/two_experts.py --demo demo --out pairs --seeds 0 1 2 --json results/two_experts.jsonl

The demo's model is fine-tuned twice by flow matching, at the noise levels of each expert of Wan 2.2 (sigma at least
0.875, and below), which makes a model of two experts. Of it are distilled, with all weights and the demo's settings:

A       one student of all times, which begins as the expert of low noise
B       two, of half of A's steps each: of [0, 0.125], jumping to 0.125, and of [0.125, 1]
B long  two, of as many steps as A each

Each seed trains its own experts and students. What is finished is not done again. Distances are those of the demo.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from facm.core.files import folder_atomically
from facm.data import Digits
from facm.evaluation.evaluator import Evaluator, build_evaluator
from facm.flow.guidance import NO_GUIDANCE
from facm.flow.times import Squeezed, Uniform
from facm.foundation.experts.pair import pair_of, teacher_of_pair
from facm.foundation.export.diffusers_folder import write_folder
from facm.foundation.export.student import student_of
from facm.foundation.families.qwen_image import QwenImage
from facm.foundation.folder import INDEX, SECOND, TRANSFORMER
from facm.pretrained.trained import Trained, load_trained
from facm.recipes.text_to_image import distill
from facm.runs.config import Run
from facm.runs.optim import AdamW, CosineDecay
from facm.sampling.methods import Euler, default_method
from facm.studies.demo_folder import Clock, train_part
from facm.studies.text_demo.measure import Prompts, measured
from facm.studies.text_demo.runs import GUIDANCE, SMOOTH, TIME, text_student, text_teacher
from facm.studies.train_and_measure import SEED_OF_EVALUATION

BOUNDARY = 0.875
IMAGES_OF_EXPERT = 38_400
TEACHER_NFE, NFE = (2, 4, 32), (1, 2, 4, 8)
SAMPLES = 1_000


def expert(demo: Path, high: bool, seed: int) -> Run:
    """Fine-tunes the demo's model at one expert's times."""
    run = text_teacher(demo / "model", demo / "data", images=IMAGES_OF_EXPERT, seed=seed)
    low_t, high_t = (0.0, 1 - BOUNDARY) if high else (1 - BOUNDARY, 1.0)
    return replace(
        run,
        objective=replace(run.objective, time=Squeezed(Uniform(), low_t, high_t)),
        optimizer=AdamW(lr=1e-3, betas=(0.9, 0.99), warmup_images=6_400, decay=CosineDecay(0.02)),
    )


def student(model: Path, data: Path, which: str, images: int, seed: int) -> Run:
    """As the demo's student of all weights."""
    plain = text_student(model, data, lora=False, images=images, seed=seed)
    run = distill(
        str(model), str(data), guidance_scale=GUIDANCE.scale, images=images, smooth=SMOOTH, student=which, seed=seed
    )
    objective = replace(run.objective, time=TIME)
    return replace(run, objective=objective, optimizer=plain.optimizer, every=plain.every)


def pair_folder(high: Path, low: Path, path: Path) -> None:
    """The folder of a model of two experts out of two exported models."""
    with folder_atomically(path) as partial_:
        shutil.copytree(high, partial_, dirs_exist_ok=True)
        shutil.copytree(low / TRANSFORMER, partial_ / SECOND)
        index = json.loads((high / INDEX).read_text(encoding="utf-8"))
        index |= {SECOND: index[TRANSFORMER], "boundary_ratio": BOUNDARY}
        (partial_ / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def trained(run: Run, path: Path) -> Path:
    if not train_part(run, path, path.name, Clock(path.with_suffix(".seconds.json")), True):
        raise SystemExit("interrupted; the same command goes on")
    return path


def two_experts(demo: Path, home: Path, seed: int) -> Path:
    path = home / "model"
    for name in ("high", "low"):
        if not (home / f"expert-{name}-model").exists():
            run = trained(expert(demo, name == "high", seed), home / f"expert-{name}")
            write_folder(student_of(load_trained(run)), home / f"expert-{name}-model")
    if not path.exists():
        pair_folder(home / "expert-high-model", home / "expert-low-model", path)
    return path


def rows_of(
    demo: Path, home: Path, seed: int, images: int, long: bool, evaluator: Evaluator
) -> Iterator[dict[str, Any]]:
    model, data = two_experts(demo, home, seed), demo / "data"
    prompts = Prompts.of(demo / "model", torch.device("cpu"))
    measure = partial(measured, prompts=prompts, evaluator=evaluator, n=SAMPLES, seed=SEED_OF_EVALUATION)

    def pair(name: str, images: int) -> Trained:
        runs = [
            trained(student(model, data, f"{half}-noise", images, seed), home / f"{name}-{half}")
            for half in ("low", "high")
        ]
        low, high = (load_trained(run, sigma_rel=0.05) for run in runs)
        return pair_of(low, high)

    short = pair("b", images // 2)
    network, guidance = teacher_of_pair(short)  # type: ignore[arg-type]
    teacher = replace(short, network=network)
    for nfe in TEACHER_NFE:
        yield {"who": "teacher, two experts", **measure(teacher, Euler(nfe), guidance=guidance)}
    single = load_trained(demo / "teacher")
    yield {"who": "teacher, one network", **measure(single, Euler(32), guidance=GUIDANCE)}
    one = load_trained(trained(student(model, data, "one", images, seed), home / "a"), sigma_rel=0.05)
    students = {"A": (one, images), "B": (short, images)}
    if long:
        students["B long"] = (pair("b-long", images), 2 * images)
    for who, (of, seen) in students.items():
        for nfe in NFE[who != "A" :]:
            row = measure(of, default_method(of.interface, nfe), guidance=NO_GUIDANCE)
            yield {"who": who, "images": seen, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="folder of a finished facm demo text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--images", type=int, default=51_200, help="that A sees; B sees as many in both halves together"
    )
    parser.add_argument("--long", action="store_true", help="B long, too")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    QwenImage.two_experts = True  # the miniature's family has one transformer, and the machinery is of all families
    evaluator = build_evaluator(Digits().open(), torch.device("cpu"))
    for seed in arguments.seeds:
        home = arguments.out / f"seed-{seed}"
        home.mkdir(parents=True, exist_ok=True)
        for row in rows_of(arguments.demo, home, seed, arguments.images, arguments.long, evaluator):
            line = json.dumps({"seed": seed, **{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}})
            print(line, flush=True)
            if arguments.json is not None:
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()

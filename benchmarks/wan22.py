"""Memory and work of distilling Wan 2.2 A14B, by plan: nothing of it is measured, and no weights are needed.

    python benchmarks/wan22.py [--json FILE] [--only TEXT]

Students: one for all times (A), and one half of a pair (B), with adapters of rank 64 on a bf16 base, or all weights.
Pictures of 1024 x 1024, and clips of 81 frames of 480 x 832; 1, 8 and 64 GPUs of 80 GB, a batch of 64, one sample at
once, checkpointing. Each line takes a minute or two.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

from facm.distributed.engine import Engine
from facm.foundation.outline import outline_wan22
from facm.recipes.wan22 import wan22_t2i
from facm.training.memory_plan import plan, work
from facm.training.memory_plan.predict import batch_of, teacher_without_weights
from facm.training.memory_plan.rehearsal import rehearse

BATCH = 64
SIZES = {"picture": (1024, 1024, 1), "clip": (480, 832, 81)}
STUDENTS = {"A": "one", "B": "low-noise"}
WEIGHTS = {"adapters": {"lora_rank": 64, "base": "bf16"}, "all weights": {"lora_rank": 0, "base": "fp32"}}
GPUS = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for what, weights, student in itertools.product(SIZES, WEIGHTS, STUDENTS):
        name = f"{what}, {weights}, student {student}"
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            model, data = outline_wan22(Path(folder), *SIZES[what])
            run = wan22_t2i(str(model), str(data), STUDENTS[student], batch_size=BATCH, **WEIGHTS[weights])
            engine = Engine(checkpointing=True, accumulate=BATCH)
            made = rehearse(run, batch_of(run, 1, None), engine, teacher_without_weights(run), bf16=True, gpu=True)
            counted = work(run, engine)
            for gpus in GPUS:
                sharded = Engine(parallel="fsdp" if gpus > 1 else "auto", checkpointing=True, accumulate=BATCH // gpus)
                for how in (sharded, dataclasses.replace(sharded, parallel="fsdp", cpu_offload=True)):
                    found = plan(run, gpus, engine=how, advise=False, rehearsal=made)
                    row = {"what": what, "weights": weights, "student": student, "gpus": gpus}
                    row |= {"cpu_offload": how.cpu_offload, "gb": round(found.total / 1e9, 1), "fits": found.fits}
                    row |= {"pflop_a_step": round(counted.flops / 1e15, 1), "hours": round(counted.hours(gpus), 1)}
                    row |= {k: round(v / 1e9, 2) for k, v in dataclasses.asdict(found).items() if isinstance(v, int)}
                    print(json.dumps(row), flush=True)
                    if arguments.json:
                        with arguments.json.open("a") as file:
                            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

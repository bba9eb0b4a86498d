"""Errors that a user can cause, as one message in terms of the command line."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Collection, Iterator, Mapping

from facm.core.terminal import warn

_NETWORK = {
    "nfe": "--num-steps",
    "num_steps": "--num-steps",
    "sampler": "--sampler",
    "times": "--times",
    "shift": "--shift",
    "n": "--num-samples",
    "batch_size": "--batch-size",
    "sigma_rel": "--ema",
    "ema": "--ema",
    "raw": "--raw",
    "trust_recipe": "--trust-recipe",
    "family": "--family",
    "weights": "--weights",
    "heads": "--heads",
    "latent_stats": "--latent-stats",
    "latent_scale": "--latent-scale",
    "statistics": "--latent-stats",
    "scale": "--latent-scale",
    "autoencoder": "--autoencoder",
    "high_noise": "--high-noise",
    "fid_stats": "--fid-stats",
    "real": "--real",
    "clip": "--clip",
}
_RUN = {
    "batch_size": "--run.batch-size",
    "precision": "--precision",
    "gpus": "--gpus",
    "resident": "--resident",
    "out": "--out",
    "tracker": "--tracker",
}
FLAGS = {
    "train": _RUN,
    "distill": _RUN,
    "finetune": _RUN,
    "plan": _RUN,
    "resume": _RUN,
    "sample": _NETWORK,
    "evaluate": _NETWORK,
    "schedule": {**_NETWORK, "trials": "--trials"},
    "weights": {**_NETWORK, "out": "--out"},
    "prepare": {
        **{name: f"--{name.replace('_', '-')}" for name in ("batch_size", "shard_size", "size", "steps", "seed")},
        **{"guidance_scale": "--guidance-scale", "buckets": "--buckets", "precision": "--precision", "out": "--out"},
        **{"embedded_guidance": "--embedded-guidance", "guidance_scale_2": "--guidance-scale-2"},
    },
    "export": {
        "sigma_rel": "--ema",
        "raw": "--raw",
        "lora_rank": "--lora-rank",
        "to": "--to",
        "out": "--out",
        **{"high_noise": "--high-noise", "num_steps": "--num-steps", "scheduler": "--scheduler"},
    },
    "latents": {"batch_size": "--batch-size", "out": "--out", "autoencoder": "--autoencoder"},
    "study": {"task": "--only", "name": "--at", "data": "--data", "out": "--out"},
    "check": {
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("data", "shape", "out", "classes", "noise_at", "time_scale", "predicts", "input_name", "time_name"),
            *("cond_name", "guidance_scale", "batch_size", "gpu_memory"),
        )
    },
    "demo": {"out": "--out"},
    "report": {"out": "--out"},
    "watch": {"port": "--port"},
}
"""Command -> argument of the library, which its errors name -> the option that sets it."""
PHRASES = {
    "students are written to = diffusers, lora or comfyui": "students are written with facm export --to",
    "expected fid_stats, a file of statistics, or real, a folder of images": (
        "expected --fid-stats FILE.npz or --real FOLDER"
    ),
    "prompts = None, and the data that the model was trained on have none: expected prompts": (
        "the data that the model was trained on have no prompts: expected --prompt"
    ),
    "learns_shortcut = True for a student, or False for a teacher": (
        "--sampler consistency for a student, or --sampler euler for a teacher"
    ),
    "statistics, such a file, or scale, a number": "--latent-stats FILE, or --latent-scale NUMBER",
    "and autoencoder = None: expected the one that": "and has no autoencoder: expected --autoencoder FILE, which",
    "expected autoencoder, one that makes": "expected --autoencoder, one that makes",
    "give its path, Inception(path)": "give its path, --inception FILE",
    "or size, to which all are cropped": "or --size, to which all are cropped",
    "guidance_scale = None for prompts alone,": "prompts alone without --guidance-scale,",
    "expected a number of frames above 1, or no clips": "expected --frames above 1, or no clips",
    "expected it with a run only; family and weights choose in a file": (
        "expected it with a run only; --family and --weights choose in a file"
    ),
    "lora_rank = None, and all weights of this run were trained: expected the rank": (
        "--lora-rank is missing: all weights of this run were trained, expected the rank"
    ),
    "they are written as they are; expected lora_rank = None": "they are written as they are; expected no --lora-rank",
    "neither data nor shape are given: expected data, what the network was trained on, or at least shape, that": (
        "expected --data, what the network was trained on, or at least --shape, that"
    ),
    "expected shape, such as (4, 32, 32)": "expected --shape, as in --shape 4 32 32",
}
"""What the library's errors expect of arguments, in words, and the same with options."""

_SOLVER = {"nfe": "--num-steps", "shift": "--shift", "times": "--times"}
_OF_RUN = {"Run": "--run", "AdamW": "--run.optimizer", "Intervals": "--run.every", "PowerEMA": "--run.ema"}
_OF_MODEL = {
    **{"Captioned": {"path": "--data"}, "Captions": {"path": "--data"}, "DiffusersModel": {"path": "--model"}},
    "LoRA": {"rank": "--lora-rank"},
}
"""Components that facm distill and finetune make of their own options."""
_OF_SAMPLING = {
    "Guidance": {"scale": "--guidance-scale", "low": "--guidance-low", "high": "--guidance-high"},
    **dict.fromkeys(
        ("Consistency", "DPMSolverPP", "EDMHeun", "Euler", "FlowThenJump", "Heun", "Jumps", "Phased"), _SOLVER
    ),
}
"""Components that options of the command make, as their own errors name them, and these options."""

_VALUE = r"(?P<value>'[^']*'|[^\s,;:)]+)"
_ARGUMENT = re.compile(rf"(?P<before>^|\b(?:with|for|expected|or) )(?P<name>[a-z_]+) = {_VALUE}")
_COMPONENT = re.compile(rf"\b(?P<owner>[A-Z]\w+): (?P<name>[a-z_]+) = {_VALUE}")
_FIELD = re.compile(rf"(?<![\w./-])(?P<part>engine|every|optimizer|ema)\.(?!py\b)(?P<name>[a-z_]+)\b(?: = {_VALUE})?")


def in_flags(message: str, command: str) -> str:
    """A message of the library, in which arguments that options of the command set are replaced by these."""
    for phrase, said in PHRASES.items():
        message = message.replace(phrase, said)
    flags = FLAGS.get(command, {})

    def field(found: re.Match[str]) -> str:
        prefix = "engine" if found["part"] == "engine" else f"run.{found['part']}"
        return f"--{prefix}.{found['name'].replace('_', '-')}{_spelled(found['value'])}"

    def component(found: re.Match[str]) -> str:
        if command in ("distill", "finetune") and found["name"] in _OF_MODEL.get(found["owner"], {}):
            return _OF_MODEL[found["owner"]][found["name"]] + _spelled(found["value"])
        if flags is _RUN and found["owner"] in _OF_RUN:
            flag = f"{_OF_RUN[found['owner']]}.{found['name'].replace('_', '-')}"
        else:
            flag = _OF_SAMPLING.get(found["owner"], {}).get(found["name"], "") if flags is _NETWORK else ""
        return flag + _spelled(found["value"]) if flag else found[0]

    message = _COMPONENT.sub(component, _with_flags(message, {"device": "--device", **flags}))
    return _FIELD.sub(field, message) if flags is _RUN else message


def in_options(message: str, names: Collection[str]) -> str:
    """The same for arguments of a function, each of which is an option of its name."""
    return _with_flags(message, {name: f"--{name.replace('_', '-')}" for name in names})


def _with_flags(message: str, flags: Mapping[str, str]) -> str:
    """``message`` with the flags of arguments by name."""

    def argument(found: re.Match[str]) -> str:
        flag = flags.get(found["name"])
        return found[0] if flag is None else found["before"] + flag + _spelled(found["value"])

    return _ARGUMENT.sub(argument, message)


def _spelled(value: str | None) -> str:
    return "" if value in (None, "True") else f" {str(value).strip(chr(39))}"


@contextlib.contextmanager
def readable_errors(command: str = "") -> Iterator[None]:
    """Errors that a user can cause are one message; FACM_DEBUG=1 shows where they come from."""
    try:
        yield
    except KeyboardInterrupt:
        warn("interrupted")
        raise SystemExit(130) from None
    except (
        ValueError,
        TypeError,
        OSError,
        RuntimeError,
        ArithmeticError,
        LookupError,
        ImportError,
        SyntaxError,
    ) as error:
        if os.environ.get("FACM_DEBUG"):
            raise
        if type(error).__name__ == "PeerError":  # another rank prints it
            raise SystemExit(2) from error
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f"rank {rank}: "
        where = traceback.extract_tb(error.__traceback__)[-1]
        if not isinstance(error, ValueError | OSError) and type(error).__module__ == "builtins":
            place = f"{where.filename}:{where.lineno}"
            warn(f"{who}unexpected {type(error).__name__} in {place} (all of it with FACM_DEBUG=1)")
        warn(f"{who}error: {in_flags(str(error), command)}")
        raise SystemExit(2) from error

"""A model in diffusers' layout, a folder with model_index.json: opened without running code of its own."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from facm.core.hashing import file_sha256
from facm.core.torch_private import kept_in_float32
from facm.core.untrusted.door import read_json
from facm.distributed.wrap import parameters_are_left_out
from facm.foundation.families.base import Family
from facm.foundation.families.table import family_of

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
WHAT = "a folder with model_index.json, as diffusers' save_pretrained writes it"
OWN_SCHEDULER = ("facm.foundation.export.scheduler", "FewStepScheduler")
PHASED_SCHEDULER = ("facm.foundation.export.phased_scheduler", "PhasedScheduler")
FLOW_JUMP_SCHEDULER = ("facm.foundation.export.flow_jump_scheduler", "FlowJumpScheduler")
"""With the two above, the classes of this package that an exported model may name."""
Part = Literal["transformer", "transformer_2"]
"""Which transformer of a model."""
TRANSFORMER: Part = "transformer"
SECOND: Part = "transformer_2"
"""The expert of low noise in a model of two; TRANSFORMER then is that of high noise."""
VAE, SCHEDULER = "vae", "scheduler"


@dataclass(frozen=True)
class ModelFolder:
    """What model_index.json says.

    path: the folder.
    pipeline: class name of the pipeline.
    family: its family.
    parts: component -> (library, class name), of those that the model has.
    boundary: the lowest noise level sigma at which a model of two experts asks the transformer of high noise; None for
        a model of one.
    """

    path: Path
    pipeline: str
    family: Family
    parts: dict[str, tuple[str, str]]
    boundary: float | None = None

    @property
    def transformers(self) -> tuple[Part, ...]:
        """The transformer, or the experts of high and of low noise."""
        return (TRANSFORMER,) if self.boundary is None else (TRANSFORMER, SECOND)

    @cached_property
    def encoders(self) -> tuple[str, ...]:
        """Names of the components that encode prompts."""
        optional = (name for name in self.family.optional_parts if name in self.parts)
        return (*self.family.text_parts, *optional)

    def identity(self, *names: str) -> dict[str, str]:
        """16 hex digits for each of these components: a hash of its files. Raises ValueError for one without files."""
        return {name: self._identity(name) for name in names}

    def _identity(self, name: str) -> str:
        folder = self.path / name
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        if not files:
            raise ValueError(f"{folder} has no files, expected the {name} that {self.path / INDEX} names")
        digest = hashlib.sha256()
        for file in files:
            status = file.stat()
            content = _sha256(file, status.st_size, status.st_mtime_ns)
            digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
        return digest.hexdigest()[:16]


@lru_cache(maxsize=1024)
def _sha256(file: Path, size: int, changed: int) -> str:
    """Of a file that is hashed once in a process while its size and time of change stay: models have gigabytes."""
    return file_sha256(file)


def open_model(path: Path) -> ModelFolder:
    """The model in ``path``; no weights are read.

    Raises ValueError for a folder that is none, a family that is not known, a component of another library, one whose
    folder is missing, one whose weights are not in safetensors, and two experts that do not make a pair.
    """
    index = path / INDEX
    if not index.is_file():
        raise ValueError(f"{path} is no model, expected {WHAT}")
    content = read_json(index)
    pipeline = content.get("_class_name") if isinstance(content, dict) else None
    if not isinstance(pipeline, str):
        raise ValueError(f"{index}: _class_name = {pipeline!r:.80}, expected the name of a pipeline of diffusers")
    family = family_of(pipeline, str(path))
    parts = {
        name: _part(index, name, entry)
        for name, entry in content.items()
        if not name.startswith("_") and isinstance(entry, list) and entry != [None, None]
    }
    for name in (*family.text_parts, TRANSFORMER, VAE, SCHEDULER):
        if name not in parts:
            raise ValueError(f"{index} names no {name}, expected one in a {pipeline}")
    for name in parts:
        if not (path / name).is_dir():
            raise ValueError(f"{path / name}: there is no such folder, expected the {name} that {index} names")
        _check_weights(path / name)
    if parts[TRANSFORMER][1] != family.transformer:
        raise ValueError(f"{index}: transformer = {parts[TRANSFORMER][1]}, expected {family.transformer}")
    return ModelFolder(path, pipeline, family, parts, _boundary(path, content, parts, family))


def _boundary(path: Path, content: dict[str, Any], parts: dict[str, tuple[str, str]], family: Family) -> float | None:
    """boundary_ratio of a model with two experts, None for one transformer. Raises ValueError for half of a pair, or
    experts that differ in more than their weights."""
    index, ratio = path / INDEX, content.get("boundary_ratio")
    if SECOND not in parts:
        if ratio is not None:
            raise ValueError(
                f"{index}: boundary_ratio = {ratio!r:.40} and no {SECOND}: one of the two experts is missing; expected "
                "both, or a model of one transformer without boundary_ratio"
            )
        return None
    if not family.two_experts:
        raise ValueError(f"{index} names a {SECOND}, expected one transformer in a {family.pipelines[0]}")
    if parts[SECOND][1] != family.transformer:
        raise ValueError(f"{index}: {SECOND} = {parts[SECOND][1]}, expected {family.transformer}")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise ValueError(
            f"{index}: boundary_ratio = {ratio!r:.40}, expected a number between 0 and 1, the noise level at which the "
            "two experts meet, such as 0.875"
        )
    high, low = (_own_config(path / name) for name in (TRANSFORMER, SECOND))
    for key in sorted(high.keys() | low.keys()):
        if high.get(key) != low.get(key):
            raise ValueError(
                f"{path}: {SECOND} has {key} = {low.get(key)!r:.60}, {TRANSFORMER} has {high.get(key)!r:.60}; expected "
                "two experts of one size"
            )
    return float(ratio)


def _own_config(folder: Path) -> dict[str, Any]:
    """config.json without what it says of versions and places."""
    content = read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise ValueError(f"{folder / 'config.json'}: {type(content).__name__}, expected settings by name")
    return {key: value for key, value in content.items() if not key.startswith("_")}


def _check_weights(folder: Path) -> None:
    """Raise ValueError where a component's weights are only in a format that can run code when it is read."""
    pickled = [file.name for suffix in ("*.bin", "*.ckpt", "*.pt", "*.pth") for file in sorted(folder.glob(suffix))]
    if pickled and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has its weights in {pickled[0]}, which can run code when it is read; expected .safetensors, as "
            "save_pretrained(..., safe_serialization=True) writes it"
        )


def _part(index: Path, name: str, entry: list[Any]) -> tuple[str, str]:
    if name == SCHEDULER and tuple(entry) in (OWN_SCHEDULER, PHASED_SCHEDULER, FLOW_JUMP_SCHEDULER):
        return entry[0], entry[1]
    if len(entry) != 2 or entry[0] not in LIBRARIES or not isinstance(entry[1], str):
        raise ValueError(
            f"{index}: {name} = {entry!r:.80}, expected a class of {' or '.join(LIBRARIES)}: code that comes with a "
            "model is not run"
        )
    return entry[0], entry[1]


def load_transformer(model: ModelFolder, dtype: torch.dtype = torch.float32, part: Part = TRANSFORMER) -> nn.Module:
    """The transformer in eval mode; without weights where the default device is meta, or parameters are left out.

    part: which, in a model of two experts. Raises ValueError where its files are none or do not fit its configuration,
    and for an expert that the model does not have.
    """
    if part not in model.transformers:
        raise ValueError(f"part = {part!r}, and {model.path} has one transformer; expected {TRANSFORMER!r}")
    kind = getattr(_diffusers(), model.family.transformer)
    folder = model.path / part
    if torch.get_default_device().type == "meta":
        return _typed(_empty(kind, folder), dtype)
    if parameters_are_left_out():
        with _readable(folder):
            module: nn.Module = kind.from_config(kind.load_config(folder, local_files_only=True))
            return _typed(module.eval(), dtype)
    return _whole(kind, folder, dtype, ("missing_keys", "unexpected_keys", "mismatched_keys"))


def _typed(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``module`` with the types that from_pretrained would give it: some layers of some classes stay in float32."""
    kept = kept_in_float32(type(module))
    if not kept:
        return nn.Module.to(module, dtype)  # diffusers' own warns of layers to keep in float32 though there are none
    for name, parameter in module.named_parameters():
        if not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return module


def _whole(kind: Any, folder: Path, dtype: torch.dtype, faults: Sequence[str]) -> nn.Module:
    """A module in eval mode. Raises ValueError where its loader reports ``faults``: it would warn of a weight that is
    missing, and draw it at random."""
    with _readable(folder):
        module, report = kind.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    wrong = [str(name) for fault in faults for name in sorted(report[fault])]
    if wrong:
        raise ValueError(f"{folder}: weights do not fit config.json: {', '.join(wrong[:5])}")
    whole: nn.Module = module.eval()
    return whole


def load_pipeline(model: ModelFolder, parts: Collection[str], dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline with the weights of these components; the other modules are there without memory (meta).

    parts: component names; tokenizers and schedulers, which have no weights, are always loaded.
    Raises ValueError where a part's files are none, or lack a weight; those of text encoders may hold more.
    """
    diffusers = _diffusers()
    with _readable(model.path), torch.device("cpu"):
        made: dict[str, Any] = {name: None for name in model.family.optional_parts if name not in model.parts}
        for name in _modules(model):
            if name in parts:
                made[name] = _whole(_class_of(model, name), model.path / name, dtype, ("missing_keys",))
            else:
                made[name] = _empty_part(model, name)
        pipe = getattr(diffusers, model.pipeline).from_pretrained(
            model.path, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **made
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _modules(model: ModelFolder) -> list[str]:
    """The components that have weights, which tokenizers, schedulers and processors have not."""
    return [name for name in model.parts if issubclass(_class_of(model, name), nn.Module)]


def _class_of(model: ModelFolder, name: str) -> Any:
    library, kind = model.parts[name]
    if library == "diffusers":
        return getattr(_diffusers(), kind)
    import transformers

    return getattr(transformers, kind)


def _empty_part(model: ModelFolder, name: str) -> nn.Module:
    kind, folder = _class_of(model, name), model.path / name
    if model.parts[name][0] == "diffusers":
        return _empty(kind, folder)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        module: nn.Module = kind(config)
    return module


def _empty(kind: Any, folder: Path) -> nn.Module:
    with _readable(folder), torch.device("meta"):
        module: nn.Module = kind.from_config(kind.load_config(folder, local_files_only=True))
        return module.eval()


@contextlib.contextmanager
def quiet(warnings_too: bool = False) -> Iterator[None]:
    """Let diffusers and transformers show no progress bars inside, nor what they warn of where this package says it
    itself, such as a prompt that is cut."""
    import transformers

    loggers = [library.utils.logging for library in (_diffusers(), transformers)]
    shown = [logger for logger in loggers if logger.is_progress_bar_enabled()]
    levels = [(logger, logger.get_verbosity()) for logger in loggers if warnings_too]
    for logger in shown:
        logger.disable_progress_bar()
    for logger, _ in levels:
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger in shown:
            logger.enable_progress_bar()
        for logger, level in levels:
            logger.set_verbosity(level)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("models of diffusers need it installed: pip install 'facm[hf]'") from error
    return diffusers


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """diffusers, transformers and safetensors fail in many ways on a foreign folder: as one ValueError. What they print
    of their progress, and of names that they will change, is not for the user of a command."""
    try:
        with quiet(warnings_too=True), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(folder)):
            raise
        text = " ".join(str(error).split())[:400]
        raise ValueError(f"{folder}: {type(error).__name__}: {text}; expected {WHAT}") from error

"""A model in diffusers' layout, a folder with model_index.json: opened without running code of its own."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facm.core.hashing import file_sha256
from facm.core.untrusted.door import read_json
from facm.foundation.families.base import Family
from facm.foundation.families.table import family_of

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
WHAT = "a folder with model_index.json, as diffusers' save_pretrained writes it"
OWN_SCHEDULER = ("facm.foundation.export.scheduler", "FewStepScheduler")
"""The one class of this package that an exported model may name."""
TRANSFORMER, VAE, SCHEDULER = "transformer", "vae", "scheduler"


@dataclass(frozen=True)
class ModelFolder:
    """What model_index.json says.

    path: the folder.
    pipeline: class name of the pipeline.
    family: its family.
    parts: component -> (library, class name), of those that the model has.
    """

    path: Path
    pipeline: str
    family: Family
    parts: dict[str, tuple[str, str]]

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
    folder is missing, and one whose weights are not in safetensors.
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
    return ModelFolder(path, pipeline, family, parts)


def _check_weights(folder: Path) -> None:
    """Raise ValueError where a component's weights are only in a format that can run code when it is read."""
    pickled = [file.name for suffix in ("*.bin", "*.ckpt", "*.pt", "*.pth") for file in sorted(folder.glob(suffix))]
    if pickled and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has its weights in {pickled[0]}, which can run code when it is read; expected .safetensors, as "
            "save_pretrained(..., safe_serialization=True) writes it"
        )


def _part(index: Path, name: str, entry: list[Any]) -> tuple[str, str]:
    if name == SCHEDULER and tuple(entry) == OWN_SCHEDULER:
        return OWN_SCHEDULER
    if len(entry) != 2 or entry[0] not in LIBRARIES or not isinstance(entry[1], str):
        raise ValueError(
            f"{index}: {name} = {entry!r:.80}, expected a class of {' or '.join(LIBRARIES)}: code that comes with a "
            "model is not run"
        )
    return entry[0], entry[1]


def load_transformer(model: ModelFolder, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The transformer in eval mode; without weights where the default device is meta.

    Raises ValueError where its files are none or do not fit its configuration.
    """
    kind = getattr(_diffusers(), model.family.transformer)
    folder = model.path / TRANSFORMER
    if torch.get_default_device().type == "meta":
        return _empty(kind, folder)
    return _whole(kind, folder, dtype, ("missing_keys", "unexpected_keys", "mismatched_keys"))


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

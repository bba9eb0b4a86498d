"""Turn any flow-matching network into a 1-8 step generator (Flow-Anchored Consistency Models)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facm.api.check import check
    from facm.api.distill import distill
    from facm.api.model import Model, load, picture
    from facm.api.train import resume, train
    from facm.core.objective import Objective
    from facm.core.types import Batch, Loss
    from facm.data import InMemory
    from facm.data.given import given_data
    from facm.distributed.engine import Engine
    from facm.flow.conditions import Labels, Unconditional
    from facm.flow.guidance import Guidance
    from facm.flow.velocity import DataVelocity, TeacherVelocity
    from facm.networks.given import given_network
    from facm.objectives.align_your_flow import AlignYourFlow
    from facm.objectives.continuous_cm import ContinuousCM
    from facm.objectives.discrete_cm import DiscreteCM
    from facm.objectives.facm import FACM
    from facm.objectives.flow_matching import FlowMatching
    from facm.objectives.imm import IMM
    from facm.objectives.mean_flow import MeanFlow
    from facm.objectives.scm import SCM
    from facm.objectives.shortcut_model import ShortcutModel
    from facm.objectives.tract import TRACT
    from facm.pretrained.trained import FromRun, load_trained
    from facm.runs.config import Intervals, Run
    from facm.runs.config import Intervals as Every
    from facm.runs.ema import PowerEMA
    from facm.runs.optim import AdamW
    from facm.training.callbacks import Callback
    from facm.training.loop import StopTraining

__version__ = "0.2.0.dev0"

_HOME = {
    "AdamW": "runs.optim",
    "AlignYourFlow": "objectives.align_your_flow",
    "Batch": "core.types",
    "Callback": "training.callbacks",
    "ContinuousCM": "objectives.continuous_cm",
    "DataVelocity": "flow.velocity",
    "DiscreteCM": "objectives.discrete_cm",
    "Engine": "distributed.engine",
    "Every": "runs.config:Intervals",
    "FACM": "objectives.facm",
    "FlowMatching": "objectives.flow_matching",
    "FromRun": "pretrained.trained",
    "Guidance": "flow.guidance",
    "IMM": "objectives.imm",
    "InMemory": "data",
    "Intervals": "runs.config",
    "Labels": "flow.conditions",
    "Loss": "core.types",
    "MeanFlow": "objectives.mean_flow",
    "Model": "api.model",
    "Objective": "core.objective",
    "PowerEMA": "runs.ema",
    "Run": "runs.config",
    "SCM": "objectives.scm",
    "ShortcutModel": "objectives.shortcut_model",
    "StopTraining": "training.loop",
    "TRACT": "objectives.tract",
    "TeacherVelocity": "flow.velocity",
    "Unconditional": "flow.conditions",
    "check": "api.check",
    "distill": "api.distill",
    "given_data": "data.given",
    "given_network": "networks.given",
    "load": "api.model",
    "load_trained": "pretrained.trained",
    "picture": "api.model",
    "resume": "api.train",
    "train": "api.train",
}

__all__ = [
    "FACM",
    "IMM",
    "SCM",
    "TRACT",
    "AdamW",
    "AlignYourFlow",
    "Batch",
    "Callback",
    "ContinuousCM",
    "DataVelocity",
    "DiscreteCM",
    "Engine",
    "Every",
    "FlowMatching",
    "FromRun",
    "Guidance",
    "InMemory",
    "Intervals",
    "Labels",
    "Loss",
    "MeanFlow",
    "Model",
    "Objective",
    "PowerEMA",
    "Run",
    "ShortcutModel",
    "StopTraining",
    "TeacherVelocity",
    "Unconditional",
    "check",
    "distill",
    "given_data",
    "given_network",
    "load",
    "load_trained",
    "picture",
    "resume",
    "train",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    """The names above, imported when first asked for: ``facm --help`` must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'facm' has no attribute {name!r}")
    import importlib

    module, _, other = _HOME[name].partition(":")
    return getattr(importlib.import_module(f"facm.{module}"), other or name)

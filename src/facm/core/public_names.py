"""The names under which components are recorded on disk, and the names that earlier versions recorded.

A component is recorded as ``PACKAGE:NAME``, where PACKAGE exports NAME on purpose (``facm:FACM``,
``facm.networks:LightningDiT``). The module that defines it is nobody's business: it may move without orphaning a run.
"""

from __future__ import annotations

EXPORTS: dict[str, tuple[str, ...]] = {
    "facm": (
        *("AdamW", "AlignYourFlow", "ContinuousCM", "DataVelocity", "DiscreteCM", "FACM", "FlowMatching", "FromRun"),
        *("Guidance", "IMM", "Intervals", "Labels", "MeanFlow", "PowerEMA", "Run", "SCM", "ShortcutModel", "TRACT"),
        *("TeacherVelocity", "Unconditional"),
    ),
    "facm.data": (
        *("Checkerboard", "Cifar10", "CroppedPictures", "Digits", "FolderPictures", "Gaussian", "GivenData", "Idx"),
        *("ImageFolder", "Moons", "Noise", "Ring", "TarPictures"),
    ),
    "facm.derivative": ("Chain", "FiniteDifference", "NoGraph", "OpLevel", "WholeNetwork"),
    "facm.flow": (
        *("ArctanLogNormal", "AuxiliaryTime", "Cosine", "ExpandedInterval", "L2", "L2Cosine", "LPIPS", "LogitNormal"),
        *("NormL2", "One", "OneMinusPower", "Phases", "PseudoHuber", "Scaled", "Shifted", "Sorted", "Squeezed"),
        *("TwoScales", "Uniform"),
    ),
    "facm.foundation": (
        *("Captioned", "Captions", "DiffusersModel", "FromExperts", "FromModel", "LoRA", "OtherExpert", "OwnBase"),
    ),
    "facm.latents": ("LatentSpace", "Latents", "StableDiffusionVAE", "TAEF2", "VAVAE"),
    "facm.networks": (
        *("DDPMpp", "EDM", "Foreign", "GivenNetwork", "LightningDiT", "MLP", "SimpleEDM", "VariancePreserving"),
    ),
    "facm.objectives": ("DoublingSteps", "OverStep", "ShrinkingGap", "SignalToNoise"),
    "facm.pretrained": ("FromFile", "GivenWeights"),
    "facm.runs": ("Constant", "CosineDecay"),
    "facm.sampling": (
        *("Consistency", "DPMSolverPP", "EDMHeun", "Euler", "FlowThenJump", "Heun", "Jumps", "Moves", "Phased"),
    ),
}
"""Package -> the components that it exports. A name stands for one component in all of them."""

PUBLIC: dict[str, str] = {name: f"{package}:{name}" for package, names in EXPORTS.items() for name in names}
"""Class name -> public name."""

VERSION_0_1: dict[str, tuple[str, ...]] = {
    "autoencoders.stable_diffusion": ("StableDiffusionVAE",),
    "autoencoders.taef2": ("TAEF2",),
    "autoencoders.vavae": ("VAVAE",),
    "conditions": ("Labels", "Unconditional"),
    "data.cifar10": ("Cifar10",),
    "data.digits": ("Digits",),
    "data.folder": ("ImageFolder",),
    "data.idx": ("Idx",),
    "data.latent_space": ("LatentSpace",),
    "data.latents": ("Latents",),
    "data.noise": ("Noise",),
    "data.pictures": ("CroppedPictures", "FolderPictures"),
    "data.toys": ("Checkerboard", "Gaussian", "Moons", "Ring"),
    "data.webdataset": ("TarPictures",),
    "derivative.chain": ("Chain",),
    "derivative.finite_difference": ("FiniteDifference",),
    "derivative.no_graph": ("NoGraph",),
    "derivative.op_level": ("OpLevel",),
    "derivative.whole": ("WholeNetwork",),
    "distances": ("L2", "L2Cosine", "NormL2", "PseudoHuber", "Scaled"),
    "ema": ("PowerEMA",),
    "generate": ("Consistency", "DPMSolverPP", "EDMHeun", "Euler", "Heun", "Jumps"),
    "guidance": ("DataVelocity", "Guidance", "TeacherVelocity"),
    "networks.adapters": ("Foreign",),
    "networks.ddpm_pp": ("DDPMpp",),
    "networks.edm": ("EDM",),
    "networks.lightning_dit": ("LightningDiT",),
    "networks.mlp": ("MLP",),
    "networks.simple_edm": ("SimpleEDM",),
    "networks.variance_preserving": ("VariancePreserving",),
    "objectives.consistency": ("ContinuousCM",),
    "objectives.discrete": ("DiscreteCM",),
    "objectives.facm": ("FACM",),
    "objectives.flow_matching": ("FlowMatching",),
    "objectives.imm": ("IMM",),
    "objectives.mean_flow": ("MeanFlow",),
    "objectives.pairs": ("DoublingSteps", "OverStep", "ShrinkingGap", "SignalToNoise"),
    "objectives.scm": ("SCM",),
    "objectives.shortcut_models": ("ShortcutModel",),
    "optim": ("AdamW", "Constant", "CosineDecay"),
    "published.from_file": ("FromFile",),
    "run": ("Every", "Run"),
    "tasks": ("AuxiliaryTime", "ExpandedInterval"),
    "times": ("ArctanLogNormal", "LogitNormal", "Uniform"),
    "trained": ("FromRun",),
    "weights": ("Cosine", "One", "OneMinusPower"),
}
"""What version 0.1 recorded: the modules that defined the components then, below ``facm``."""

RENAMED_CLASSES = {"Every": "Intervals"}
"""Class names of version 0.1 that are others now."""

RENAMED_FIELDS: dict[str, dict[str, str]] = {
    "facm:FlowMatching": {"mixed": "p_flow_condition"},
    "facm:MeanFlow": {"equal": "data_proportion"},
    "facm:ShortcutModel": {"every": "bootstrap_every", "finest": "denoise_timesteps"},
}
"""Public name -> field of version 0.1 -> field now."""

REMOVED = {
    "facm.networks.unet:UNet": "facm.networks:DDPMpp is the U-Net of this package",
    "facm.optim:LinearDecay": "facm.runs:CosineDecay is the decay of this package",
}
"""Components of version 0.1 that are gone, and what is there instead."""

ALIASES: dict[str, str] = {
    f"facm.{module}:{name}": PUBLIC[RENAMED_CLASSES.get(name, name)]
    for module, names in VERSION_0_1.items()
    for name in names
}
"""Recorded by version 0.1 -> public name."""

BEFORE: dict[str, str] = {public: recorded for recorded, public in ALIASES.items()}
"""Public name -> what version 0.1 recorded."""


def modern(name: str) -> str:
    """The public name that ``name`` stands for, or ``name`` itself."""
    return ALIASES.get(name, name)


def is_public(cls: type) -> bool:
    """Whether ``cls`` is one of the components that this package exports."""
    return cls.__module__.partition(".")[0] == "facm" and cls.__qualname__ in PUBLIC

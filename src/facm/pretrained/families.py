"""Whose network a file holds, and what turns it into this package's convention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facm.core.types import NetworkConfig
from facm.networks.adapters.foreign import Foreign
from facm.networks.adapters.variance_preserving import VariancePreserving
from facm.networks.lightning_dit import LightningDiT

NAMES = {"facm": "FACM", "lightningdit": "LightningDiT", "sit": "SiT", "dit": "DiT", "repa": "REPA", "edm": "EDM"}


def check_family(family: str | None) -> None:
    if family is not None and family not in NAMES:
        raise ValueError(f"family = {family!r}, expected one of {', '.join(NAMES)}")


def fitting(config: LightningDiT, projectors: bool) -> tuple[str, ...]:
    """The families that have such weights; first those that would be meant.

    projectors: REPA's, with which its training aligns features.
    """
    if projectors:
        return ("repa",)
    if config.swiglu or config.rope or config.rmsnorm or config.auxiliary_time or not config.shift:
        return ("lightningdit", "facm")
    if config.qk_norm:
        return ("repa", "lightningdit", "facm")
    if config.learn_sigma:
        return ("dit", "sit", "lightningdit", "facm")
    return ("dit", "sit", "repa", "lightningdit", "facm")


def decide(
    family: str | None, fits: tuple[str, ...], trained_by: str | None, settings: Mapping[str, Any], path: Path
) -> tuple[str, bool | None]:
    """(family, learns_shortcut) of a file; family: what the user says it is, or None.

    Raises ValueError where the weights are another family's, or could be of several.
    """
    said = _named(settings, fits)
    if family is not None:
        if family not in fits:
            raise ValueError(f"{path}: family = {family!r}, but its keys look like {_or(fits)}'s")
        if said is not None and {said, family} == {"dit", "sit"}:
            raise ValueError(
                f"{path}: family = {family!r}, but it says itself that it is a {settings['model']}; expected {said!r}"
            )
        if trained_by is not None and family not in ("facm", "lightningdit"):
            raise ValueError(f"{path}: family = {family!r}, but its layout is {NAMES[trained_by]}'s")
    found = family or (trained_by if trained_by in fits else None) or said
    if found is None and fits[0] == "lightningdit":
        _check_convention("lightningdit", settings, path)
        return "lightningdit", None  # a teacher and a student have the same keys
    if found is None and fits == ("repa",):
        found = "repa"
    if found is None:
        meant = [name for name in fits if name not in ("lightningdit", "facm")]
        meant = meant if len(meant) > 1 else list(fits)
        names = [NAMES[name] for name in meant]
        raise ValueError(
            f"{path}: its keys fit {', '.join(names[:-1])} and {names[-1]}: expected "
            + " or ".join(f"family = {name!r}" for name in meant)
        )
    _check_convention(found, settings, path)
    return found, found == "facm"


def network_of(family: str, config: LightningDiT) -> tuple[NetworkConfig, str]:
    """The network in this package's convention, and the prefix that its weights' names get."""
    if family == "repa":
        return Foreign(config, reversed_time=True), "inner."
    if family == "dit":
        return VariancePreserving(config), "inner."
    return config, ""


def _named(settings: Mapping[str, Any], fits: tuple[str, ...]) -> str | None:
    """What the options of training call the network, as in "DiT-XL/2"; REPA calls its own SiT."""
    model = str(settings.get("model", ""))
    if model.startswith("LightningDiT-"):
        return "lightningdit" if "lightningdit" in fits else None
    for start, names in (("DiT-", ("dit",)), ("SiT-", ("sit", "repa"))):
        if model.startswith(start):
            return next((name for name in names if name in fits), None)
    return None


def _check_convention(family: str, settings: Mapping[str, Any], path: Path) -> None:
    """SiT, REPA and LightningDiT can also be trained on other paths, or to predict something else."""
    if family == "dit":
        return
    for name, expected in (("prediction", ("velocity", "v")), ("path_type", ("linear",))):
        value = settings.get(name)
        if value is not None and str(value).lower() not in expected:
            raise ValueError(
                f"{path} was trained with {name} = {value!r}, expected {expected[0]!r}: only velocities on the linear "
                f"path are translated for {NAMES[family]}"
            )


def _or(fits: tuple[str, ...]) -> str:
    return " or ".join(NAMES[name] for name in fits)

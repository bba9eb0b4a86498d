"""The families by the class name of their pipeline."""

from __future__ import annotations

from facm.foundation.families.base import Family
from facm.foundation.families.flux import Flux
from facm.foundation.families.flux2 import Flux2, Flux2Klein
from facm.foundation.families.ltx import LTX
from facm.foundation.families.lumina2 import Lumina2
from facm.foundation.families.qwen_image import QwenImage
from facm.foundation.families.sana import Sana
from facm.foundation.families.sd3 import StableDiffusion3
from facm.foundation.families.wan import Wan
from facm.foundation.families.z_image import ZImage

ALL: tuple[Family, ...] = (
    Flux(),
    Flux2(),
    Flux2Klein(),
    LTX(),
    Lumina2(),
    QwenImage(),
    Sana(),
    StableDiffusion3(),
    Wan(),
    ZImage(),
)
FAMILIES = {name: family for family in ALL for name in family.pipelines}


def family_of(pipeline: str, source: str) -> Family:
    """The family of a pipeline's class. source: the folder that names it, for the error.

    Raises ValueError for one that there is not.
    """
    if pipeline not in FAMILIES:
        raise ValueError(
            f"{source} is a {pipeline}, a family that is not known; expected one of {', '.join(sorted(FAMILIES))}. To "
            "add one, write a subclass of facm.foundation.families.base.Family in a file of its own, such as "
            f"facm/foundation/families/{pipeline.removesuffix('Pipeline').lower()}.py, and a line in table.py beside it"
        )
    return FAMILIES[pipeline]

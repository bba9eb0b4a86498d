"""DiT, SiT and REPA in their published sizes: one transformer, three conventions of time and prediction.

All three are LightningDiT's blocks without its four additions (timm's attention and MLP, layer norms without weights),
under the same parameter names. What differs (facebookresearch/DiT, willisma/SiT, sihyun-yu/REPA):

    sit    velocity, t = 0 noise, t = 1 data: this package's own convention; twice the channels out, half of it unused
    repa   velocity, its time runs from 0 (data) to 1 (noise); trained with projectors, which sampling has no use for
    dit    noise, over the 1000 timesteps of the variance-preserving path; twice the channels out, half for the variance

The defaults are ImageNet's at 256 x 256: latents (4, 32, 32) of Stable Diffusion's VAE times 0.18215, 1000 classes.
"""

from __future__ import annotations

from typing import Any

from facm.networks.adapters.foreign import Foreign
from facm.networks.adapters.variance_preserving import VariancePreserving
from facm.networks.lightning_dit import LightningDiT, lightning_dit

NAMES = ("S", "B", "L", "XL")
PLAIN = dict.fromkeys(("qk_norm", "swiglu", "rope", "rmsnorm"), False)


def _plain(family: str, name: str, learn_sigma: bool, options: dict[str, Any]) -> LightningDiT:
    size, _, patch = name.partition("/")
    if size not in NAMES or not patch.isdigit():
        raise ValueError(
            f"{family} size = {name!r}, expected one of {', '.join(NAMES)} and a patch size (2, 4 or 8), as in 'XL/2'"
        )
    defaults: dict[str, Any] = {"input_size": 32, "in_channels": 4, "learn_sigma": learn_sigma, **PLAIN}
    return lightning_dit(name, **(defaults | options))


def sit(name: str, **options: Any) -> LightningDiT:
    """SiT (Ma et al., 2024). name: as in "XL/2"; ``options`` are fields of :class:`LightningDiT`."""
    return _plain("SiT", name, True, options)


def repa(name: str, **options: Any) -> Foreign:
    """SiT as trained with REPA (Yu et al., 2025): time reversed, no variance, ``qk_norm=True`` where it was trained
    so. Its size S was never published: as released, that would not run."""
    return Foreign(_plain("REPA", name, False, options), reversed_time=True)


def dit(name: str, **options: Any) -> VariancePreserving:
    """DiT (Peebles & Xie, 2023), its noise prediction translated into a velocity."""
    return VariancePreserving(_plain("DiT", name, True, options))

"""DiT, SiT and REPA in their published sizes: one transformer, three conventions of time and prediction.

All three are LightningDiT's blocks without its four additions (timm's attention and MLP, layer norms without weights),
under the same parameter names. They differ as follows (facebookresearch/DiT, willisma/SiT, sihyun-yu/REPA):

    sit    predicts the velocity, with t = 0 noise and t = 1 data as in this package; half of its output is unused
    repa   predicts the velocity, with time from 0 (data) to 1 (noise); its projectors are needed in training only
    dit    predicts the noise at 1000 timesteps of the variance-preserving path; half of its output is the variance

The defaults are for ImageNet at 256 x 256: latents (4, 32, 32) of Stable Diffusion's VAE times 0.18215, 1000 classes.
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
    """SiT (Ma et al., 2024) of a published size such as "XL/2"; ``options`` are fields of :class:`LightningDiT`."""
    return _plain("SiT", name, True, options)


def repa(name: str, **options: Any) -> Foreign:
    """SiT as trained with REPA (Yu et al., 2025): reversed time and no variance.

    Give ``qk_norm=True`` for weights that were trained with it. Weights of size S were never published.
    """
    return Foreign(_plain("REPA", name, False, options), reversed_time=True)


def dit(name: str, **options: Any) -> VariancePreserving:
    """DiT (Peebles & Xie, 2023), whose noise prediction is translated into a velocity."""
    return VariancePreserving(_plain("DiT", name, True, options))

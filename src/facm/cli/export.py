"""facm export RUN --to diffusers | lora | comfyui: a text-to-image student as others use it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from facm.core.terminal import say


def export_to(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    to: Literal["diffusers", "lora", "comfyui"],
    out: Path,
    num_steps: int = 2,
    lora_rank: int | None = None,
    ema: float | None = None,
    raw: bool = False,
    high_noise: Path | None = None,
    scheduler: Literal["stock", "facm", "flow-jump"] = "stock",
    dtype: Literal["fp32", "bf16"] = "fp32",
    trust_recipe: bool = False,
) -> None:
    """Write a text-to-image student for diffusers or ComfyUI.

    Args:
        run: the folder of a run of facm distill or facm finetune.
        to: diffusers: a whole pipeline; lora: adapters for load_lora_weights; comfyui: adapters by ComfyUI's names.
        out: folder to write, or NAME.safetensors for comfyui. What exists is not overwritten.
        num_steps: steps that the scheduler and the model card are written for, 1 to 8.
        lora_rank: rank of the adapters that a run without adapters is approximated by, for lora and comfyui.
        ema: EMA length sigma_rel; any length if the run kept snapshots; default: the run's first.
        raw: the raw weights instead of an EMA.
        high_noise: where RUN is the low-noise half of a pair (facm distill --student low-noise), the run of the other.
        scheduler: stock: diffusers' own; facm: right for every number of steps; flow-jump: along the flow
            first. With the last two, facm must be installed to open the folder.
        dtype: type of the weights that are written.
        trust_recipe: execute the recipe file that came with the run, from now on, whoever wrote it.
    """
    from facm.api.export import check_text_to_image, export_text_to_image
    from facm.foundation.experts.pair import pair_of
    from facm.pretrained.trained import load_trained

    check_text_to_image(out, to, num_steps, lora_rank, high_noise)
    trained = load_trained(run, ema, raw, trust_recipe=trust_recipe)
    if high_noise is not None:
        trained = pair_of(trained, load_trained(high_noise, ema, raw, trust_recipe=trust_recipe))
    say(*export_text_to_image(trained, out, to, num_steps, lora_rank, scheduler, dtype))

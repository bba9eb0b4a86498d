"""Stable Diffusion's autoencoder, or another AutoencoderKL of diffusers, from a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.component import component
from facm.core.hashing import identity_of
from facm.core.untrusted.door import read_json
from facm.core.untrusted.safetensors_header import check_numbers, check_size, read_header
from facm.latents.autoencoders.checks import check_images, check_latents, check_noise
from facm.latents.autoencoders.loading import frozen, misfits
from facm.latents.autoencoders.types import AutoencoderConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
WHAT = "a folder with config.json and diffusion_pytorch_model.safetensors of an AutoencoderKL, as diffusers saves it"


@dataclass(frozen=True)
@component
class StableDiffusionVAE(AutoencoderConfig):
    """An AutoencoderKL of diffusers from a local folder; nothing is downloaded.

    Stable Diffusion's has factor 8 and 4 channels. Its latents are meant to be multiplied by 0.18215, the module's
    ``scaling_factor``, for :func:`facm.latents.statistics.scaled`.
    """

    path: str
    """Folder of the autoencoder, or of a pipeline that contains it."""
    subfolder: str = ""
    """Sub-folder of the autoencoder in a pipeline, usually vae; empty where path is the autoencoder's folder."""

    def build(self) -> DiffusersKL:
        """The module with its weights.

        Raises ValueError naming the folder and the weights that are missing, unexpected or misshapen.
        """
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            message = "StableDiffusionVAE needs diffusers, which is not installed: pip install 'facm[hf]'"
            raise ValueError(message) from error
        folder = Path(self.path).expanduser() / self.subfolder
        _check_config(folder, AutoencoderKL)
        try:  # safetensors only: the older .bin is a pickle
            vae, report = AutoencoderKL.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except Exception as error:  # diffusers, safetensors and PyTorch fail in many ways on a foreign folder
            raise ValueError(f"{folder}: {type(error).__name__}: {str(error)[:500]}; expected {WHAT}") from error
        misfits(str(folder), list(report["missing_keys"]), list(report["unexpected_keys"]), [])
        return DiffusersKL(vae)


class DiffusersKL(nn.Module):
    """diffusers' AutoencoderKL as an :class:`facm.latents.autoencoders.types.Autoencoder`; latents are not scaled here.

    diffusers' networks are trained on (z - shift_factor) * scaling_factor; both factors are attributes here.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.channels = int(vae.config.latent_channels)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift_factor = float(vae.config.shift_factor or 0.0)
        frozen(self)
        self.identity = identity_of(f"autoencoder-kl-f{self.factor}d{self.channels}", vae)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See :class:`facm.latents.autoencoders.types.Autoencoder`."""
        check_images(x, self.factor)
        posterior = self.vae.encode(x).latent_dist
        if noise is None:
            return posterior.mean
        check_noise(noise, posterior.mean)
        return posterior.mean + posterior.std * noise

    def decode(self, z: Tensor) -> Tensor:
        """See :class:`facm.latents.autoencoders.types.Autoencoder`."""
        check_latents(z, self.channels)
        return self.vae.decode(z).sample


def _check_config(folder: Path, kl: Any) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; expected {WHAT}")
    file = folder / "config.json"
    try:
        config = read_json(file)
        kind = config["_class_name"]
    except ValueError as error:
        raise ValueError(f"{error}; expected {WHAT}") from error
    except (OSError, KeyError, TypeError) as error:
        reason = "there is no such file" if not file.exists() else f"{type(error).__name__}: {error}"
        raise ValueError(f"{file}: {reason}; expected {WHAT}") from error
    if kind != "AutoencoderKL" or config.get("in_channels", 3) != 3 or config.get("out_channels", 3) != 3:
        channels = f"{config.get('in_channels', 3)} to {config.get('out_channels', 3)}"
        raise ValueError(f"{file}: {kind} from {channels} channels, expected AutoencoderKL from 3 to 3")
    weights = folder / WEIGHTS
    try:
        header = read_header(weights)
    except (OSError, ValueError) as error:
        raise ValueError(f"{weights}: {error}; expected {WHAT}") from error
    check_numbers(config, header, str(file))
    with torch.device("meta"):  # without memory, before there is one with
        try:
            network = kl.from_config(config)
        except Exception as error:  # diffusers fails in many ways on foreign configurations
            raise ValueError(f"{file}: {type(error).__name__}: {str(error)[:200]}; expected {WHAT}") from error
    check_size(sum(value.numel() for value in network.parameters()), header, str(file))

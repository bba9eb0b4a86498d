"""ImageNet at 256 x 256 in latent space: the paper's main experiment (Sec. 4, Table 5), and the four teachers of its
Table 2.

facm latents encode IMAGENET/train --out data/imagenet256-vavae --autoencoder vavae-imagenet256-f16d32-dinov2.pt
torchrun --standalone --nproc-per-node 8 -m facm train imagenet256-lightningdit-xl-pretrain
torchrun --standalone --nproc-per-node 8 -m facm train imagenet256-lightningdit-xl

None of them has been run to its end yet; the FIDs are those of the paper, for the stated length of the run.
"""

from __future__ import annotations

from facm.core.types import NetworkConfig
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.times import ArctanLogNormal
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.latents import Latents
from facm.networks.lightning_dit import lightning_dit
from facm.networks.presets import dit, repa, sit
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.pretrained.from_file import pretrained
from facm.runs.config import Intervals, Run
from facm.runs.ema import PowerEMA
from facm.runs.optim import AdamW

EPOCH = 1_281_167
"""Images in ImageNet's training set."""
VAVAE = "data/imagenet256-vavae"
STABLE_DIFFUSION = "data/imagenet256-sdvae"
EVERY = Intervals(log=102_400, checkpoint=10 * EPOCH, ema_snapshots=10 * EPOCH)


def imagenet256_lightningdit_xl_pretrain(
    latents: str = VAVAE, images: int = 800 * EPOCH, classes: int = 1000, seed: int = 0
) -> Run:
    """Stage 1: a LightningDiT-XL/1 teacher, with half of the samples conditioned on c_FM (App. A.3 a).

    Args:
        latents: Folder that facm latents encode wrote, or the reference's.
        images: Length of the run in images seen.
        classes: Number of classes of the data set.
        seed: Seed of all random numbers of the run.
    """
    return Run(
        network=lightning_dit("XL/1", num_classes=classes),
        data=Latents(latents, num_classes=classes),
        objective=FlowMatching(Labels(classes)),  # t uniform, as in the reference's stage 1
        images=images,  # 800 epochs: FID 1.35 with 250 x 2 evaluations (Table 1)
        batch_size=1024,
        optimizer=AdamW(lr=2e-4, betas=(0.9, 0.95)),  # as in LightningDiT
        ema=PowerEMA((0.05, 0.1)),
        every=EVERY,
        seed=seed,
    )


def imagenet256_lightningdit_xl(
    latents: str = VAVAE,
    teacher: str = "runs/imagenet256-lightningdit-xl-pretrain",
    images: int = 100 * EPOCH,
    classes: int = 1000,
    guidance_scale: float = 1.75,
    seed: int = 0,
) -> Run:
    """Stage 2: the one- and two-step student of Table 1, distilled from stage 1.

    Args:
        latents: Folder that facm latents encode wrote, or the reference's.
        teacher: Run folder of stage 1, or a file such as 800ep-stg1.pt.
        images: Length of the run in images seen.
        classes: Number of classes of the data set.
        guidance_scale: Guidance scale w that the student learns.
        seed: Seed of all random numbers of the run.
    """
    # 100 epochs: FID 1.32 with two steps; 250: 1.76 with one; 400: 1.70 with one (the authors' released students).
    # Table 3: 1.93 with one step after 250 epochs with task=AuxiliaryTime().
    network = lightning_dit("XL/1", num_classes=classes)
    return _distilled(network, Latents(latents, num_classes=classes), teacher, None, images, guidance_scale, seed)


def imagenet256_lightningdit_xl_scratch(
    latents: str = VAVAE,
    images: int = 800 * EPOCH,
    classes: int = 1000,
    guidance_scale: float = 1.75,
    seed: int = 0,
) -> Run:
    """FACM from scratch: without a teacher, the velocity comes from the data.

    Args:
        latents: Folder that facm latents encode wrote, or the reference's.
        images: Length of the run in images seen.
        classes: Number of classes of the data set.
        guidance_scale: Guidance scale w, with the network at its null condition.
        seed: Seed of all random numbers of the run.
    """
    return Run(
        network=lightning_dit("XL/1", num_classes=classes),
        data=Latents(latents, num_classes=classes),
        objective=FACM(
            Labels(classes),
            DataVelocity(Guidance(guidance_scale)),
            time=ArctanLogNormal(-0.8, 1.6),
            label_dropout=0.1,
        ),
        images=images,  # 800 epochs: FID 2.27 with one step (Table 3)
        batch_size=1024,
        optimizer=AdamW(lr=1e-4, betas=(0.9, 0.999)),
        ema=PowerEMA((0.05, 0.2)),
        every=EVERY,
        seed=seed,
    )


def imagenet256_sit_xl(
    latents: str = STABLE_DIFFUSION,
    teacher: str = "SiT-XL-2-256x256.pt",
    images: int = 100 * EPOCH,
    classes: int = 1000,
    guidance_scale: float = 1.75,
    seed: int = 0,
) -> Run:
    """Table 2: a student of SiT-XL/2.

    Args:
        latents: Folder that facm latents encode wrote with Stable Diffusion's autoencoder.
        teacher: File of the published weights, or a run folder.
        images: Length of the run in images seen.
        classes: Number of classes of the data set.
        guidance_scale: Guidance scale w that the student learns.
        seed: Seed of all random numbers of the run.
    """
    network = sit("XL/2", num_classes=classes)  # FID 2.07 with two steps; its teacher's 2.06 with 250 x 2 (Table 2)
    return _distilled(network, _scaled(latents, classes), teacher, "sit", images, guidance_scale, seed)


def imagenet256_repa_xl(
    latents: str = STABLE_DIFFUSION,
    teacher: str = "SiT-XL-2-256x256-REPA.pt",
    images: int = 100 * EPOCH,
    classes: int = 1000,
    guidance_scale: float = 1.75,
    seed: int = 0,
) -> Run:
    """Table 2: a student of REPA's SiT-XL/2, whose time runs the other way.

    Args:
        latents: Folder that facm latents encode wrote with Stable Diffusion's autoencoder.
        teacher: File of the published weights, or a run folder.
        images: Length of the run in images seen.
        classes: Number of classes of the data set.
        guidance_scale: Guidance scale w that the student learns.
        seed: Seed of all random numbers of the run.
    """
    network = repa("XL/2", num_classes=classes)  # FID 1.52 with two steps; its teacher's 1.42 with 250 x 2 (Table 2)
    return _distilled(network, _scaled(latents, classes), teacher, "repa", images, guidance_scale, seed)


def imagenet256_dit_xl(
    latents: str = STABLE_DIFFUSION,
    teacher: str = "DiT-XL-2-256x256.pt",
    images: int = 100 * EPOCH,
    classes: int = 1000,
    guidance_scale: float = 1.75,
    seed: int = 0,
) -> Run:
    """Table 2: a student of DiT-XL/2, which predicts the noise of another path.

    Args:
        latents: Folder that facm latents encode wrote with Stable Diffusion's autoencoder.
        teacher: File of the published weights, or a run folder.
        images: Length of the run in images seen.
        classes: Number of classes of the data set.
        guidance_scale: Guidance scale w that the student learns.
        seed: Seed of all random numbers of the run.
    """
    network = dit("XL/2", num_classes=classes)  # FID 2.31 with two steps; its teacher's 2.27 with 250 x 2 (Table 2)
    return _distilled(network, _scaled(latents, classes), teacher, "dit", images, guidance_scale, seed)


def _scaled(latents: str, classes: int) -> Latents:
    """Stable Diffusion's latents times 0.18215, as SiT, REPA and DiT were trained."""
    return Latents(latents, scale=0.18215, num_classes=classes)


def _distilled(
    network: NetworkConfig,
    data: Latents,
    teacher: str,
    family: str | None,
    images: int,
    guidance_scale: float,
    seed: int,
) -> Run:
    """A student with the settings of Table 5 for ImageNet."""
    source = pretrained(teacher, family, sigma_rel=0.05)
    return Run(
        network=network,
        data=data,
        objective=FACM(
            Labels(data.num_classes),
            TeacherVelocity(Guidance(guidance_scale, 0.125)),  # w = 1.75, t_low = 0.125
            time=ArctanLogNormal(-0.8, 1.6),  # P_mean, P_std
        ),
        images=images,
        batch_size=1024,
        optimizer=AdamW(lr=1e-4, betas=(0.9, 0.999)),  # weight decay 0
        ema=PowerEMA((0.2, 0.05)),  # sigma_rel 0.2 is the one that is sampled
        teacher=source,
        initial=source,
        every=EVERY,
        seed=seed,
    )

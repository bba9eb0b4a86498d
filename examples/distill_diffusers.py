"""A one-step generator from diffusers' UNet2DModel.  python examples/distill_diffusers.py, with facm[hf,demo] installed

The loop above main's last lines trains a rectified flow as diffusers' schedulers of flow matching have it: time from 0
at data to 1000 at noise, and a prediction of noise - data."""

import torch
from diffusers import UNet2DModel
from sklearn.datasets import load_digits

import facm


def main(out="runs/diffusers", steps=1500, images=30_000, channels=(32, 64)):
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=channels,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        x = digits[torch.randint(len(digits), (128,))]
        noise, sigma = torch.randn_like(x), torch.rand(len(x))
        at = sigma[:, None, None, None]
        loss = (model((1 - at) * x + at * noise, 1000 * sigma).sample - (noise - x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    student = facm.distill(model, digits, out, images=images)
    student.picture(student.sample(20)).save(f"{out}/one-step.png")
    return student


if __name__ == "__main__":
    main()

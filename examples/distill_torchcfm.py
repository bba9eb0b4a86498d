"""A one-step generator from torchcfm's U-Net.  pip install torchcfm, then python examples/distill_torchcfm.py

The loop above main's last lines is that of torchcfm's own examples, on scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from torchcfm.models.unet import UNetModel

import facm


def main(out="runs/torchcfm", steps=1500, images=30_000, channels=32):
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    data = torch.utils.data.TensorDataset(digits)
    model = UNetModel(dim=(1, 8, 8), num_channels=channels, num_res_blocks=1, channel_mult=[1, 2])
    optimizer, matcher = torch.optim.Adam(model.parameters(), lr=1e-3), ConditionalFlowMatcher(sigma=0.0)
    loader = torch.utils.data.DataLoader(data, batch_size=128, shuffle=True, drop_last=True)
    step = 0
    while step < steps:
        for (x1,) in loader:
            t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            loss = (model(t, xt) - ut).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1

    student = facm.distill(model, data, out, images=images)
    student.picture(student.sample(20)).save(f"{out}/one-step.png")
    return student


if __name__ == "__main__":
    main()

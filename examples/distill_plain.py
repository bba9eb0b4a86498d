"""A one-step generator of signals (C, L) from a plain module and a plain loop.  python examples/distill_plain.py

Everything but the last lines of main is somebody's own training script, which knows nothing of facm."""

import torch

import facm


class Signals(torch.utils.data.Dataset):
    """Two tones of random pitch and phase, (2, 32), with the number of periods as their label."""

    def __init__(self, n=2048):
        rng = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 3, (n,), generator=rng)
        phase = 6.28 * torch.rand(n, 1, 1, generator=rng)
        grid = torch.arange(32) / 32 * 6.28
        periods = (1 + self.labels)[:, None, None] * torch.tensor([1.0, 2.0])[None, :, None]
        self.signals = torch.sin(periods * grid + phase)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.signals[i], int(self.labels[i])


class Net(torch.nn.Module):
    """Its time runs from 1 at noise to 0 at data, and y = 3 is no class."""

    def __init__(self, width=64):
        super().__init__()
        self.label = torch.nn.Embedding(4, width)
        self.time = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.SiLU(), torch.nn.Linear(width, width))
        self.inward = torch.nn.Conv1d(2, width, 3, padding=1, padding_mode="circular")
        self.middle = torch.nn.Conv1d(width, width, 7, padding=3, padding_mode="circular")
        self.outward = torch.nn.Conv1d(width, 2, 3, padding=1, padding_mode="circular")

    def forward(self, x, time, y):
        h = self.inward(x) + (self.time(time[:, None]) + self.label(y))[:, :, None]
        h = h + self.middle(torch.nn.functional.silu(h))
        return self.outward(torch.nn.functional.silu(h))


def trained(net, data, steps):
    loader = torch.utils.data.DataLoader(data, batch_size=128, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer, step = torch.optim.Adam(net.parameters(), lr=2e-3), 0
    while step < steps:
        for x, y in loader:
            noise, s = torch.randn_like(x), torch.rand(len(x))
            at = s[:, None, None]
            loss = (net((1 - at) * x + at * noise, s, y) - (noise - x)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return net


def main(out="runs/signals", steps=600, images=50_000):
    torch.manual_seed(0)
    data = Signals()
    net = trained(Net(), data, steps)
    student = facm.distill(net, data, out, classes=3, images=images, lr=1e-3)
    x = student.sample(6, labels=[0, 1, 2])
    print(f"{len(x)} signals of shape {tuple(x.shape[1:])} in one step")
    return student


if __name__ == "__main__":
    main()

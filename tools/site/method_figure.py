"""Draws docs/method.png: the exact flow from a normal to two modes, its velocity, and jumps to the ends of its ways.

    python tools/site/method_figure.py

The data are (N(-2, 0.3^2) + N(2, 0.3^2)) / 2, whose marginal velocity is known: E[x_1 - x_0 | x_t].
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

MODES, SIGMA, STEPS = np.array([-2.0, 2.0]), 0.3, 400
OUT = Path(__file__).parents[2] / "docs" / "method.png"


def velocity(x: np.ndarray, t: float) -> np.ndarray:
    """E[x_1 - x_0 | x_t = x] for x (n,): of each mode, weighted by how likely it is."""
    variance = (1 - t) ** 2 + (t * SIGMA) ** 2
    off = x[:, None] - t * MODES
    weight = np.exp(-(off**2) / (2 * variance))
    weight /= weight.sum(1, keepdims=True)
    of_mode = MODES + (t * SIGMA**2 - (1 - t)) / variance * off
    return (weight * of_mode).sum(1)


def ways(x_0: np.ndarray) -> np.ndarray:
    """(STEPS + 1, n), by Heun's method."""
    x, found = x_0, [x_0]
    for i in range(STEPS):
        t, h = i / STEPS, 1 / STEPS
        v = velocity(x, t)
        x = x + h / 2 * (v + velocity(x + h * v, t + h))
        found.append(x)
    return np.stack(found)


def main() -> None:
    t = np.linspace(0, 1, STEPS + 1)
    all_ways, two = ways(np.linspace(-2.2, 2.2, 23)), ways(np.array([-0.55, 1.3]))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, constrained_layout=True)
    for ax, title in zip(axes, ("the anchor: velocity along the flow", "the shortcut: a jump to the end"), strict=True):
        ax.plot(t, all_ways, color="0.85", lw=0.8)
        ax.plot(t, two, color="0.45", lw=1.4)
        ax.set(title=title, xlabel="t      (0: noise, 1: data)", xlim=(-0.02, 1.06))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("x")
    for way in two.T:
        for i in range(0, STEPS, 50):
            v = velocity(way[i : i + 1], t[i])[0]
            axes[0].annotate(
                "",
                (t[i] + 0.1, way[i] + 0.1 * v),
                (t[i], way[i]),
                arrowprops={"arrowstyle": "->", "color": "C0", "lw": 1.6},
            )
        for i in (0, 120, 240):
            axes[1].annotate(
                "", (1.0, way[-1]), (t[i], way[i]), arrowprops={"arrowstyle": "->", "color": "C3", "lw": 1.6}
            )
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()

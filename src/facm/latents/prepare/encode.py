"""Encoding of images that are decoded ahead, with noise that depends only on the seed and the image."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from facm.core.rng import derive
from facm.data.crop import centre_crop
from facm.data.pictures import Pictures
from facm.latents.autoencoders.types import Autoencoder


def decoded(
    pictures: Pictures, indices: Sequence[int], size: int, threads: int, ahead: int
) -> Generator[np.ndarray, None, None]:
    """The centre crops (3, size, size) uint8 of images ``indices``, in order.

    ``threads`` threads decode up to ``ahead`` images in advance, and end with the iterator. An unreadable image raises
    ValueError when it is due.
    """

    def crop(index: int) -> np.ndarray:
        return centre_crop(pictures.image(index), size).transpose(2, 0, 1)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[Future[np.ndarray]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(crop, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@torch.no_grad()
def encode(
    autoencoder: Autoencoder, pixels: Tensor, indices: Sequence[int], flip: bool, seed: int | None, pictures: Pictures
) -> Tensor:
    """The latents (B, C, h, w) float32 on the CPU of pixels (B, 3, H, W) uint8.

    indices: Numbers of the images in ``pixels``.
    flip: Whether to mirror the images first.
    seed: Seed of the posterior's samples; None for its means.
    Raises ValueError for latents of another shape than the autoencoder states, and for non-finite latents, naming the
    image.
    """
    x = (pixels.flip(-1) if flip else pixels).float().div_(127.5).sub_(1)
    expected = (len(x), autoencoder.channels, x.shape[2] // autoencoder.factor, x.shape[3] // autoencoder.factor)
    noise = None if seed is None else _noise(seed, indices, flip, expected[1:]).to(x.device)
    z = autoencoder.encode(x, noise)
    if tuple(z.shape) != expected or z.dtype != torch.float32:
        raise ValueError(
            f"{autoencoder.identity}: latents are {z.dtype} {tuple(z.shape)}, expected torch.float32 {expected}"
        )
    z = z.cpu()
    bad = ~z.isfinite().flatten(1).all(1)
    if bad.any():
        index = indices[int(bad.nonzero()[0])]
        raise ValueError(f"{autoencoder.identity}: non-finite latents of {pictures.name}: {pictures.files[index]}")
    return z


def _noise(seed: int, indices: Sequence[int], flip: bool, shape: tuple[int, ...]) -> Tensor:
    rng = torch.Generator()
    return torch.stack([torch.randn(shape, generator=rng.manual_seed(derive(seed, i, flip))) for i in indices])

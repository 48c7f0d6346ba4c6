"""Images for the tests of LPIPS."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SIZE = {"alex": 31, "vgg": 16, "squeeze": 17}
SIZE = {"alex": (35, 46), "vgg": (17, 34), "squeeze": (35, 46)}  # of most tests: odd, not square, fast


def image(n: int, h: int, w: int, *, seed: int, dtype: torch.dtype = torch.float32, channels: int = 3) -> Tensor:
    """Noise in [-1, 1] over a smooth image, [n, channels, h, w]: the same values, rounded, for every dtype."""
    gen = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=gen)
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear") if n else coarse[..., :1, :1]
    noise = torch.rand(n, channels, h, w, generator=gen)
    return ((0.7 * smooth + 0.3 * noise) * 2 - 1).to(dtype)


def pair(n: int, h: int, w: int, **options) -> tuple[Tensor, Tensor]:
    """Two batches of such images."""
    return image(n, h, w, seed=1, **options), image(n, h, w, seed=2, **options)


NOISE_SIZE = 48


def noise(n: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32, size: int = NOISE_SIZE) -> list[Tensor]:
    """Two batches of noise in [-1, 1], [n, 3, size, size]."""
    gen = torch.Generator().manual_seed(seed)
    return [(torch.rand(n, 3, size, size, generator=gen, dtype=torch.float64) * 2 - 1).to(dtype) for _ in range(2)]

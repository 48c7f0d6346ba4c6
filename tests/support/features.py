"""Features of two images for the head's tests."""

from __future__ import annotations

import torch
from torch import Tensor

# Channels of the trunks' taps, at spatial sizes small enough for every backend and odd where it matters.
SHAPES = {
    "vgg": [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)],
    "alex": [(64, 15, 15), (192, 7, 7), (384, 3, 3), (256, 3, 3), (256, 3, 3)],
    "squeeze": [(64, 31, 31), (128, 15, 15), (256, 7, 7), (384, 3, 3), (384, 3, 3), (512, 3, 3), (512, 3, 3)],
    "odd": [(3, 5, 7), (1, 1, 1), (65, 9, 2), (130, 1, 33)],
    # More layers than a launch of the CUDA kernels takes, and more channels than its tiles have room for.
    "wide": [(2050, 2, 3), (1032, 2, 4), (513, 3, 3), (520, 2, 2), *[(c, 4, 4) for c in (8, 16, 24, 1, 2)]],
}
LAYOUTS = ("nchw", "channels_last", "sliced", "transposed", "expanded")


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; 'expanded' repeats the first image for the whole batch."""
    if layout == "nchw":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # every other channel and column of a larger tensor
        n, c, h, w = x.shape
        big = x.new_zeros(n, 2 * c, h + 2, 2 * w)
        view = big[:, ::2, 1:-1, ::2]
        view.copy_(x)
        return view
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded":
        return x[:1].expand(x.shape)
    raise ValueError(layout)


def features(net: str, dtype: torch.dtype, *, batch: int = 2, layout: str = "nchw", seed: int = 0, device="cpu"):
    """ReLU-like features of both images, and signed weights.

    Some pixels are zero vectors, some are the same in both images, and their scales differ by a factor of 100.
    """
    gen = torch.Generator().manual_seed(seed)
    feats0, feats1, weights = [], [], []
    for c, h, w in SHAPES[net]:
        pair = []
        for _ in range(2):
            f = torch.randn(batch, c, h, w, generator=gen).relu()
            f *= 10 ** (2 * torch.rand(batch, 1, h, w, generator=gen) - 1)
            f[torch.rand(batch, 1, h, w, generator=gen).expand(f.shape) < 0.1] = 0
            pair.append(f)
        same = torch.rand(batch, 1, h, w, generator=gen) < 0.1
        pair[1] = torch.where(same, pair[0], pair[1])
        f0, f1 = (in_layout(f.to(dtype).to(device), layout) for f in pair)
        feats0.append(f0)
        feats1.append(f1)
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        weights.append((torch.rand(c, generator=gen, dtype=torch.float64) - 0.1).to(acc).to(device))
    return feats0, feats1, weights


def to_float64(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().cpu().double() for t in tensors]

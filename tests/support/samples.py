"""Pairs of the package's own images: a square of a distorted image, and the same square of the image.

The distortions are arithmetic on bytes, so a sample is the same everywhere. The squares lie away from the border that a
shift repeats, and have hardly a flat area: there `lpips` itself decides by rounding which pixel of a pool gets the
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import lpips_fast
from lpips_fast.bapps.distortions import noisy, recoloured, shifted

IMAGES = Path(lpips_fast.__file__).parent / "demo" / "images"
DISTORTIONS = {"noise": noisy, "shift": shifted, "recolour": recoloured}


class Sample(NamedTuple):
    """Which image, how it is distorted, and the square's top left corner and side in pixels."""

    image: str
    distortion: str
    top: int
    left: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.image} {self.distortion} {self.top}:{self.left}:{self.size}"

    def pair(self) -> tuple[Tensor, Tensor]:
        """The square of the distorted image and of the image, float32 [1, 3, size, size] in [-1, 1]."""
        image = lpips_fast.load_image(IMAGES / f"{self.image}.png")
        rows, columns = (slice(start, start + self.size) for start in (self.top, self.left))
        distorted = DISTORTIONS[self.distortion](image)
        in0, in1 = (lpips_fast.im2tensor(x[rows, columns]) for x in (distorted, image))
        return in0, in1


# Recorded by tools/make_golden.py: all that lpips computes, and the distances of whole images.
SQUARES = (
    Sample("landscape", "noise", 60, 100, 64),
    Sample("marble", "shift", 20, 50, 64),
    Sample("spheres", "recolour", 100, 60, 64),
)
WHOLE = (
    Sample("landscape", "recolour", 0, 0, 256),
    Sample("marble", "noise", 0, 0, 256),
    Sample("spheres", "shift", 0, 0, 256),
)

# Squares all over the images.
TWENTY = tuple(
    Sample(
        ("landscape", "marble", "spheres")[i % 3],
        tuple(DISTORTIONS)[i // 3 % 3],
        4 + 61 * i % 188,
        4 + 97 * i % 188,
        64,
    )
    for i in range(20)
)


def batches(samples: Sequence[Sample], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The distorted squares and the others, [N, 3, size, size]."""
    in0, in1 = (torch.cat(images).to(dtype) for images in zip(*(sample.pair() for sample in samples), strict=True))
    return in0, in1


def blocks(x: Tensor) -> Tensor:
    """The means of [..., H, W] over 4 x 4 blocks, times the root of their pixels.

    This is a projection: the norm of an error in it is at most the norm of the error in x.
    """
    h, w = (side // 4 for side in x.shape[-2:])
    return torch.nn.functional.avg_pool2d(x, (h, w)) * (h * w) ** 0.5

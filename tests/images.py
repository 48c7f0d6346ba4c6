"""Images for the tests of LPIPS, and the one table of tolerances against lpips 0.1.4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Against lpips in float64.
# Values: |found - expected| <= atol * max|expected| + rtol |expected| everywhere. lpips itself in float32 is off by up
# to 4e-6 of the largest value of VGG's maps.
# Gradients: the norm of an image's error, relative to its gradient's. Where a ReLU or a pool is within rounding of a
# tie float32 may decide otherwise, and the gradient jumps, by 3% for one of the 1024 values of a 1 x 2 tap; so does
# lpips's own in float32. So up to half of the images may be off by such jumps; an error in a formula puts off all. In
# float64 no tie is that close, and all are held to rounding.
VALUE_TOLERANCE = {torch.float64: (1e-12, 1e-11), torch.float32: (1e-5, 1e-5)}
GRAD_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}

MIN_SIZE = {"alex": 31, "vgg": 16, "squeeze": 17}
SIZE = {"alex": (35, 46), "vgg": (17, 34), "squeeze": (35, 46)}  # of most tests: odd, not square, and soon done


def image(n: int, h: int, w: int, *, seed: int, dtype: torch.dtype = torch.float32, channels: int = 3) -> Tensor:
    """Noise in [-1, 1] over a smooth image, [n, channels, h, w]: the same values, rounded, for every dtype."""
    gen = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=gen)
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear") if n else coarse[..., :1, :1]
    noise = torch.rand(n, channels, h, w, generator=gen)
    return ((0.7 * smooth + 0.3 * noise) * 2 - 1).to(dtype)


def pair(n: int, h: int, w: int, **options) -> tuple[Tensor, Tensor]:
    """Two such images."""
    return image(n, h, w, seed=1, **options), image(n, h, w, seed=2, **options)


def assert_close(found: Tensor, expected: Tensor, tolerance: tuple[float, float], what: str = "value") -> None:
    """|found - expected| <= atol * max|expected| + rtol |expected| everywhere."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    atol, rtol = tolerance
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    excess = (found - expected).abs() - rtol * expected.abs() - atol * expected.abs().max()
    bad = ~(excess <= 0)  # a NaN is bad
    assert not bad.any(), f"{what}: {int(bad.sum())} of {bad.numel()} off, the worst by {excess[bad].max():.3e}"


def assert_gradients_close(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    """|found - expected| <= GRAD_TOLERANCE |expected| for each image, in float32 for half of them at least."""
    errors = []
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape
        for image_found, image_expected in zip(f.detach().cpu().double(), e):
            errors.append(((image_found - image_expected).norm() / image_expected.norm()).item())
    errors.sort()
    assert errors[-1] <= (GRAD_TOLERANCE[dtype] if dtype == torch.float64 else 0.1), f"relative errors {errors}"
    assert errors[(len(errors) - 1) // 2] <= GRAD_TOLERANCE[dtype], f"relative errors {errors}"

"""Everyday distortions: from an image, uint8 [H, W, 3], to one of the same size and type."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter


def blurred(image: np.ndarray, radius: float = 2) -> np.ndarray:
    """A Gaussian blur; the radius is the standard deviation in pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noisy(image: np.ndarray, deviation: float = 20, seed: int = 0) -> np.ndarray:
    """Gaussian noise; the standard deviation is in units of 1/255."""
    noise = np.random.default_rng(seed).normal(0, deviation, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def shifted(image: np.ndarray, pixels: int = 3) -> np.ndarray:
    """Moved right by a number of pixels; the left edge is repeated."""
    return np.pad(image, ((0, 0), (pixels, 0), (0, 0)), mode="edge")[:, : image.shape[1]]


def compressed(image: np.ndarray, quality: int = 10) -> np.ndarray:
    """Compressed as a JPEG of a quality from 1 to 95."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="jpeg", quality=quality)
    return np.asarray(Image.open(file))


def recoloured(image: np.ndarray, offsets: tuple[float, float, float] = (20, 0, -20)) -> np.ndarray:
    """Red, green and blue are each changed by an offset in units of 1/255."""
    return (image + np.asarray(offsets)).clip(0, 255).astype(np.uint8)


DISTORTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blur 2 px": blurred,
    "noise 20/255": noisy,
    "shift 3 px": shifted,
    "JPEG 10": compressed,
}

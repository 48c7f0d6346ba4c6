"""Everyday distortions of an image, uint8 [H, W, 3] to the same."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter


def blurred(image: np.ndarray) -> np.ndarray:
    """A Gaussian blur of 2 pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))


def noisy(image: np.ndarray) -> np.ndarray:
    """Gaussian noise of standard deviation 20, of 255."""
    noise = np.random.default_rng(0).normal(0, 20, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def shifted(image: np.ndarray) -> np.ndarray:
    """Moved right by 3 pixels, the left edge repeated."""
    return np.pad(image, ((0, 0), (3, 0), (0, 0)), mode="edge")[:, :-3]


def compressed(image: np.ndarray) -> np.ndarray:
    """A JPEG of quality 10."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="jpeg", quality=10)
    return np.asarray(Image.open(file))


DISTORTIONS = {"blur 2 px": blurred, "noise 20/255": noisy, "shift 3 px": shifted, "JPEG 10": compressed}

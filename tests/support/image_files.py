"""Image files and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save_noise(path: Path, seed: int, width: int = 40, height: int = 32) -> None:
    """Writes an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def soft_disc(height: int, width: int) -> np.ndarray:
    """A mask uint8 [H, W]: 255 within a circle left of the middle, 0 far from it."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 3)
    return np.clip(255 * (1.5 - 4 * distance / width), 0, 255).astype(np.uint8)

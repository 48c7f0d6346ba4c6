"""Image files and masks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

ODD_NAMES = ("new\nline.png", os.fsdecode(b"b\xe9.png"), "tab\t $x^$ name.png", "\N{SNOWMAN}.png")


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


def frames(n: int, noise: float) -> list[Image.Image]:
    """A moving gradient with noise that grows."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64]
    made = []
    for i in range(n):
        smooth = np.stack([128 + 100 * np.sin(x / 7 + i), 128 + 100 * np.cos(y / 9), 0 * x + 128.0], axis=-1)
        made.append((smooth + rng.normal(0, 1 + noise * i, smooth.shape)).clip(0, 255).astype(np.uint8))
    return [Image.fromarray(frame) for frame in made]


def save_frames(folder, images) -> None:
    folder.mkdir()
    for i, image in enumerate(images):
        image.save(folder / f"f{i}.png")


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth, and different in each corner."""
    y, x = np.mgrid[:height, :width]
    channels = 40 + 2 * x + y, 200 - 3 * y, 30 + x * y / 20
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def clear_picture() -> np.ndarray:
    """RGBA, the left third opaque, the right one transparent."""
    alpha = np.repeat([255, 128, 0], [24, 16, 24]).astype(np.uint8)
    return np.dstack([picture(), np.broadcast_to(alpha, (48, 64))])


def over(image: np.ndarray, color: str) -> np.ndarray:
    """An image RGBA [48, 64, 4] composited over a colour."""
    return np.array(Image.alpha_composite(Image.new("RGBA", (64, 48), color), Image.fromarray(image)).convert("RGB"))

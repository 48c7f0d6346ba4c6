"""Patches of the photographs that the package scikit-image has in its wheel, and queries to search among them.

They are real images with real neighbours: patches that overlap, that show the same texture, that are empty.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# Drawings, scans of text and images smaller than a patch are left out. Gray photographs have three equal channels.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
SHIFT = 2  # how many pixels a shifted copy is moved, at most, each way
NOISE = 5  # standard deviation of the noise in a noisy copy, of 255


class Patches:
    """Images whose slices are tensors [n, 3, H, W] in [-1, 1], kept in a quarter of the memory.

    Attributes:
        values: uint8 [N, H, W, 3].
        taken: the numbers of the images that were asked for, in order.
    """

    def __init__(self, values):
        self.values = values
        self.taken = []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, rows):
        self.taken += range(*rows.indices(len(self)))
        return torch.from_numpy(self.values[rows]).permute(0, 3, 1, 2) / 127.5 - 1


def places(n, size, seed):
    """Where patches lie, drawn from all places in all photographs: [n, 3], photograph, top and left."""
    rng = np.random.default_rng(seed)
    heights, widths = _room(size)
    photograph = rng.choice(len(heights), n, p=heights * widths / (heights * widths).sum())
    return np.stack((photograph, rng.integers(heights[photograph]), rng.integers(widths[photograph])), axis=1)


def cut(where, size):
    """The patches of `size` x `size` pixels at these places."""
    values = np.empty((len(where), size, size, 3), dtype=np.uint8)
    for value, (photograph, top, left) in zip(values, where, strict=True):
        value[:] = _photographs()[photograph][top : top + size, left : left + size]
    return Patches(values)


def queries(n, indexed, size, seed):
    """n patches: 70 % from other places than `indexed`, 15 % shifted and 15 % noisy copies of indexed ones."""
    rng = np.random.default_rng(seed)
    copies = n * 15 // 100
    chosen = indexed[rng.choice(len(indexed), 2 * copies)]
    shifted, noisy = chosen[:copies].copy(), cut(chosen[copies:], size).values
    shifted[:, 1:] += rng.integers(-SHIFT, SHIFT + 1, (copies, 2))
    last = np.stack(_room(size), axis=1) - 1
    shifted[:, 1:] = np.clip(shifted[:, 1:], 0, last[shifted[:, 0]])
    noisy = np.clip(noisy + rng.normal(0, NOISE, noisy.shape), 0, 255).astype(np.uint8)
    taken = {*map(tuple, indexed.tolist())}
    drawn = places(2 * n, size, seed)
    other = [place for place in drawn if tuple(place.tolist()) not in taken][: n - 2 * copies]
    return Patches(np.concatenate((cut(other, size).values, cut(shifted, size).values, noisy)))


def _room(size):
    """How many rows and columns of each photograph a patch may begin at."""
    shapes = np.array([photograph.shape[:2] for photograph in _photographs()])
    return shapes[:, 0] - size + 1, shapes[:, 1] - size + 1


@functools.cache
def _photographs():
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [np.asarray(Image.open(folder / name).convert("RGB")) for name in PHOTOGRAPHS]

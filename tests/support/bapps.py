"""Folders laid out as BAPPS."""

from __future__ import annotations

import numpy as np
from PIL import Image


def write_judgements(root, kind, subset, n, size=64):
    """n samples of noise; their judgements are 0, 1/n, 2/n, ..."""
    images, judgement = (("ref", "p0", "p1"), "judge") if kind == "2afc" else (("p0", "p1"), "same")
    rng = np.random.default_rng(len(subset))
    for i in range(n):
        for part in (*images, judgement):
            (root / kind / subset / part).mkdir(parents=True, exist_ok=True)
        for part in images:
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / kind / subset / part / f"{i:06}.png")
        np.save(root / kind / subset / judgement / f"{i:06}.npy", np.array([i / n]))

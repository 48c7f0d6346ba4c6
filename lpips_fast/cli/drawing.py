"""Distance maps as pictures, alone or beside the images that they compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Nine evenly spaced colours of magma (Smith and van der Walt, CC0): dark for 0, lighter the larger, to grayscale alike.
_MAGMA = (
    (0, 0, 4),
    (28, 16, 68),
    (79, 18, 123),
    (129, 37, 129),
    (181, 54, 122),
    (229, 80, 100),
    (251, 135, 97),
    (254, 194, 135),
    (252, 253, 191),
)
_GAP = 8
_MIN_WIDTH = 224  # of the widest image, for captions to be legible


class Panel(NamedTuple):
    image: np.ndarray  # uint8 [H, W, 3]
    caption: str


def colorize(values: np.ndarray, top: float) -> np.ndarray:
    """Values [H, W] from 0 to `top` (and above, cut) as colours, uint8 [H, W, 3]; NaN is gray."""
    values = np.asarray(values, dtype=np.float64)
    unknown = np.isnan(values)
    share = np.clip(np.where(unknown, 0.0, values) / (top or 1.0), 0.0, 1.0)
    at = np.linspace(0.0, 1.0, len(_MAGMA))
    colors = np.stack([np.interp(share, at, channel) for channel in zip(*_MAGMA, strict=True)], axis=-1)
    colors[unknown] = 128
    return np.rint(colors).astype(np.uint8)


def arrange(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Rows of panels, each with its caption above it, on white; small images enlarged, pixel by pixel."""
    factor = -(-_MIN_WIDTH // max(panel.image.shape[1] for row in rows for panel in row))
    rows = [[Panel(p.image.repeat(factor, axis=0).repeat(factor, axis=1), p.caption) for p in row] for row in rows]
    width = max(panel.image.shape[1] for row in rows for panel in row)
    font = ImageFont.load_default(size=max(10, min(24, width // 16)))
    line = sum(font.getmetrics()) + 2 if isinstance(font, ImageFont.FreeTypeFont) else 14
    widths = [sum(p.image.shape[1] + _GAP for p in row) + _GAP for row in rows]
    heights = [max(p.image.shape[0] for p in row) + line + _GAP for row in rows]
    canvas = Image.new("RGB", (max(widths), sum(heights) + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        x = _GAP
        for panel in row:
            draw.text((x, y), _fit(draw, one_line(panel.caption), panel.image.shape[1], font), fill="black", font=font)
            canvas.paste(Image.fromarray(panel.image), (x, y + line))
            x += panel.image.shape[1] + _GAP
        y += height
    return canvas


def one_line(text: str) -> str:
    """The text with escapes for what cannot be drawn: line breaks, and bytes of a file's name that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text, cut at its end so that it is at most `width` wide."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "\N{HORIZONTAL ELLIPSIS}", font) > width:
        text = text[:-1]
    return text + "\N{HORIZONTAL ELLIPSIS}"

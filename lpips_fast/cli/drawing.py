"""Pictures of distances: maps beside the images that they compare, heat maps, curves.

Heat maps and curves need matplotlib (`pip install "lpips-fast[plot]"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lpips_fast._files import replacing
from lpips_fast.cli.errors import UsageError

# Nine evenly spaced colours of magma (Smith and van der Walt, CC0): 0 is dark, and larger values are lighter, also in
# grayscale.
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
_MIN_WIDTH = 224  # pixels of the widest image, so that captions are legible
_MOST_LABELS = 50  # names at a side of a heat map


class Panel(NamedTuple):
    """An image and the caption above it."""

    image: np.ndarray  # uint8 [H, W, 3]
    caption: str


def colorize(values: np.ndarray, top: float) -> np.ndarray:
    """Values [H, W] as colours, uint8 [H, W, 3]. Values above `top` look like `top`, and NaN is gray."""
    values = np.asarray(values, dtype=np.float64)
    unknown = np.isnan(values)
    share = np.clip(np.where(unknown, 0.0, values) / (top or 1.0), 0.0, 1.0)
    at = np.linspace(0.0, 1.0, len(_MAGMA))
    colors = np.stack([np.interp(share, at, channel) for channel in zip(*_MAGMA, strict=True)], axis=-1)
    colors[unknown] = 128
    return np.rint(colors).astype(np.uint8)


def arrange(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Rows of panels on white. Small images are enlarged by a whole factor, without interpolation."""
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


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text, cut at its end to a width of at most `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "\N{HORIZONTAL ELLIPSIS}", font) > width:
        text = text[:-1]
    return text + "\N{HORIZONTAL ELLIPSIS}"


def check_picture(path: Path) -> None:
    """Raises a UsageError, before the work, if the suffix of a file names no format for pictures."""
    formats = Image.registered_extensions()
    if formats.get(path.suffix.lower()) not in Image.SAVE:
        raise UsageError(f"{path}: no format for pictures has the suffix {path.suffix!r}; use .png")


def save_picture(path: Path, picture: Image.Image) -> None:
    """Writes a picture in the format of the file's suffix."""
    with replacing(path) as temporary:
        picture.save(temporary)


def check_plot(path: Path | None, option: str) -> None:
    """Raises a UsageError, before the work, if a plot could not be drawn at its end."""
    if path is None:
        return
    try:
        figure = _empty_figure(1, 1)
    except ImportError as error:
        raise UsageError(f'{option} needs matplotlib: pip install "lpips-fast[plot]"') from error
    if path.suffix.lower().lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{option} {path}: no format for plots has the suffix {path.suffix!r}; use .png or .svg")


def save_heatmap(path: Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """Draws a matrix of distances as colours, with the names at its sides if they are few."""
    side = min(16.0, 4 + 0.2 * max(values.shape))
    figure = _empty_figure(side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="magma", vmin=0, interpolation="nearest", aspect="auto")
    figure.colorbar(image, label="LPIPS")
    for axis, names, turned in ((axes.yaxis, rows, 0), (axes.xaxis, columns, 90)):
        if len(names) <= _MOST_LABELS:
            axis.set_ticks(range(len(names)), [_plain(name) for name in names], rotation=turned, fontsize=7)
    axes.set_title(_plain(title))
    _save(figure, path)


def save_curve(path: Path, x: Sequence[float], y: Sequence[float], x_label: str, title: str) -> None:
    """Draws distances over time, and their mean."""
    figure = _empty_figure(10, 4)
    axes = figure.add_subplot()
    axes.plot(x, y, linewidth=1)
    axes.axhline(float(np.nanmean(y)), color="gray", linestyle="--", linewidth=1, label=f"mean {np.nanmean(y):.4f}")
    axes.set(xlabel=x_label, ylabel="LPIPS", title=_plain(title))
    axes.set_ylim(bottom=0)
    axes.legend()
    _save(figure, path)


def _empty_figure(width: float, height: float) -> Any:
    """A figure of matplotlib; sides in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _plain(text: str) -> str:
    return one_line(text).replace("$", r"\$")  # else matplotlib sets the text between two $ as a formula


def one_line(text: str) -> str:
    """The text with escapes for characters that cannot be drawn: line breaks, and bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

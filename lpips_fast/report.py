"""A run's results as one HTML page that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .pictures import colorize

_BINS = 30
_LARGEST_SIDE = 320  # of an embedded picture, in pixels


class Worst(NamedTuple):
    """A pair to look at: its name, its distance, both images uint8 [H, W, 3], the map of their distance [H, W]."""

    name: str
    distance: float
    image0: np.ndarray
    image1: np.ndarray
    map: np.ndarray


def report_page(
    title: str,
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    distances: Sequence[tuple[str, float]],
    errors: Iterable[tuple[str, str]],
    worst: Sequence[Worst],
) -> str:
    """The page.

    Args:
        title: its heading.
        settings: how the numbers came about.
        summary: their statistics.
        distances: each pair's name and distance; the histogram is over these, and the table holds them all.
        errors: each pair that has no distance, and why.
        worst: the pairs to show with their maps; the maps have one scale.
    """
    errors = list(errors)
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<div class="columns">',
        _section("Summary", _table(("statistic", "value"), [(key, _text(v)) for key, v in summary.items()])),
        _section("Settings", _table(("setting", "value"), [(key, _text(v)) for key, v in settings.items()])),
        _section("Histogram", _histogram([value for _, value in distances])),
        "</div>",
    ]
    if worst:
        top = max(float(np.nanmax(pair.map)) for pair in worst)
        caption = f"Maps: black is 0, the lightest {top:.3g}."
        parts.append(_section("The largest distances", f"<p>{caption}</p>" + "".join(_figure(p, top) for p in worst)))
    if errors:
        parts.append(_section(f"Not compared ({len(errors)})", _table(("image", "reason"), errors)))
    rows = [(name, f"{value:.6f}") for name, value in sorted(distances, key=lambda pair: -pair[1])]
    parts.append(_section(f"All distances ({len(rows)})", _table(("image", "LPIPS"), rows)))
    return _PAGE.replace("{title}", escape(title)).replace("{body}", "\n".join(parts))


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def _figure(pair: Worst, top: float) -> str:
    pictures = ((pair.image0, "A"), (pair.image1, "B"), (colorize(pair.map, top), "distance"))
    images = "".join(f'<img alt="{label}" title="{label}" src="{_data_uri(image)}">' for image, label in pictures)
    return f"<figure>{images}<figcaption>{escape(pair.name)}: {pair.distance:.4f}</figcaption></figure>"


def _data_uri(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _histogram(values: Sequence[float]) -> str:
    if not values:
        return "<p>none</p>"
    step = _round_up(max(values) / _BINS)
    counts = np.bincount(np.minimum(np.array(values) / step, _BINS - 1).astype(int), minlength=_BINS)
    width, height, bottom, left = 560, 240, 24, 44
    bar, most = (width - left) / _BINS, int(counts.max())
    parts = []
    for i, count in enumerate(counts.tolist()):
        tall = count / most * (height - 12)
        told = f"{i * step:.4g} to {(i + 1) * step:.4g}: {count}"
        parts.append(
            f'<rect class="bar" x="{left + i * bar:.1f}" y="{height - tall:.1f}" width="{bar - 1:.1f}" '
            f'height="{tall:.1f}"><title>{told}</title></rect>'
        )
    for i in range(0, _BINS + 1, 5):
        x = left + i * bar
        parts.append(f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle">{i * step:.3g}</text>')
    parts.append(f'<text x="{left - 6}" y="16" text-anchor="end">{most}</text>')
    parts.append(f'<line x1="{left}" x2="{width}" y1="{height}" y2="{height}"/>')
    box = f"0 0 {width + 16} {height + bottom}"
    return f'<svg viewBox="{box}" role="img" aria-label="histogram of distances">{"".join(parts)}</svg>'


def _round_up(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    if step <= 0:
        return 0.01
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step * (1 - 1e-9))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.columns { display: flex; flex-wrap: wrap; gap: 0 3rem; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
td:last-child { font-variant-numeric: tabular-nums; }
figure { display: inline-block; margin: 0 1.5rem 1.5rem 0; }
figure img { margin-right: 4px; image-rendering: auto; vertical-align: top; max-width: 30%; min-width: 8rem; }
svg { width: 36rem; max-width: 100%; }
svg text { fill: currentColor; font-size: 12px; }
svg line { stroke: currentColor; }
.bar { fill: #b5367a; }
</style>
</head>
<body>
{body}
</body>
</html>
"""

"""The results of `dirs` as one HTML page, which shows all without its script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from lpips_fast.cli.drawing import colorize
from lpips_fast.cli.page import STYLE, picture, properties, row, section, shown, shrink, table, url, whole_page
from lpips_fast.cli.results import FilePair

Loaded = TypeVar("Loaded", bound=tuple[Any, ...])

_BINS = 30  # bins of the histogram, at most
_BINS_SHOWN = 5  # bins, at least, so that equal values give a bar and not a block
_EQUAL = 1e-3  # values whose spread, relative to the largest, is below this are equal in the histogram
_LOOKED_AT = 32  # pairs read for one group of examples, at most
_THUMBNAIL = (8, 8)
_NEARLY_EQUAL = 0.5  # mean squared difference of two thumbnails, relative to their variance


class Example(NamedTuple):
    """A pair to show: both images, uint8 [h, w, 3], and the map of their distance, [h, w], made small."""

    pair: FilePair
    distance: float
    image0: np.ndarray
    image1: np.ndarray
    map: np.ndarray


def choose_examples(
    distances: Sequence[tuple[FilePair, float]],
    load: Callable[[FilePair], Loaded | None],
    distance_map: Callable[[Loaded], np.ndarray],
) -> dict[str, list[Example]]:
    """Chooses pairs to show, in groups by heading.

    The pairs in order of distance are cut into thirds. The first third gives up to 4 pairs of the largest distances,
    the second up to 2 around the median, the last up to 2 of the smallest. A group leaves out a pair whose image A is
    nearly equal to one that it has, like a neighbouring frame of a video. The search for a group ends after 32 pairs,
    even if it is not full.

    Args:
        distances: each pair and its distance.
        load: reads a pair. The first two items of its result are the images, uint8 [H, W, 3] of one size. None leaves
            the pair out.
        distance_map: makes the map [H, W] of a result of `load`.
    """
    ranked = _ranked(distances)
    n = len(ranked)
    second, third = -(-n // 3), n - (n + 1) // 3
    about_median = sorted(range(second, third), key=lambda rank: abs(2 * rank - (n - 1)))
    groups = (
        ("Largest distances", 4, ranked[:second]),
        ("Around the median", 2, [ranked[rank] for rank in about_median]),
        ("Smallest distances", 2, ranked[third:][::-1]),
    )
    examples = {}
    for heading, most, candidates in groups:
        found = (
            Example(pair, distance, *map(shrink, (*loaded[:2], distance_map(loaded))))
            for pair, distance, loaded in _distinct(candidates[:_LOOKED_AT], load, most)
        )
        if group := sorted(found, key=lambda example: -example.distance):
            examples[heading] = group
    return examples


def report_page(
    folders: tuple[str, str],
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    distances: Sequence[tuple[FilePair, float]],
    errors: Sequence[tuple[FilePair, str]],
    unmatched: tuple[Sequence[str], Sequence[str]],
    examples: Mapping[str, Sequence[Example]],
    place: Path | None,
) -> str:
    """Makes the page.

    Args:
        folders: the folders of the images A and B, as the page names them.
        settings: the settings of the run.
        summary: the statistics of the distances.
        distances: each pair and its distance, finite. The histogram and the table have them all.
        errors: each pair without a distance, and the reason.
        unmatched: the images of each folder without a counterpart in the other, as paths within their folder.
        examples: the pairs to show with their maps, in groups by heading. All maps have one scale.
        place: the folder of the page, to which links are relative. None makes links absolute.
    """
    title = "LPIPS of {} and {}".format(*folders)
    parts = [
        f"<h1>{shown(title)}</h1>",
        '<div class="columns">',
        section("Histogram", _histogram([distance for _, distance in distances])),
        section("Summary", properties(summary)),
        section("Settings", properties(settings)),
        "</div>",
    ]
    if examples:
        top = max(float(np.nanmax(example.map)) for group in examples.values() for example in group)
        ramp = f'<span class="ramp">0 {picture("", colorize(_RAMP, 1.0))} {top:.3g}</span>'
        scale = f'<p class="scale">Scale of all maps: {ramp}</p>' if top > 0 else ""
        for heading, group in examples.items():
            figures = "".join(_figure(example, top, place) for example in group)
            parts.append(section(heading, f'{scale}<div class="figures">{figures}</div>'))
            scale = ""
    rows = [row(_links(pair, place), shown(pair.name), shown(why)) for pair, why in errors]
    for label, folder, other, names in zip("AB", folders, reversed(folders), unmatched, strict=True):
        why = shown(f"no counterpart in {other}")
        rows += [row(_link(label, str(Path(folder, name)), place), shown(name), why) for name in names]
    if rows:
        head = '<th class="files">files</th><th>image</th><th>reason</th>'
        parts.append(section(f"Not compared ({len(rows)})", table("errors", head, rows)))
    rows = [row(f"{distance:.6f}", _links(pair, place), shown(pair.name)) for pair, distance in _ranked(distances)]
    parts.append(section(f"All distances ({len(distances)})", _FILTER + table("distances", _HEAD, rows)))
    return whole_page(title, "\n".join(parts), STYLE + _STYLE, _SCRIPT)


def _ranked(distances: Iterable[tuple[FilePair, float]]) -> list[tuple[FilePair, float]]:
    return sorted(distances, key=lambda pair: -pair[1])


def _distinct(
    candidates: Iterable[tuple[FilePair, float]],
    load: Callable[[FilePair], Loaded | None],
    most: int,
) -> Iterator[tuple[FilePair, float, Loaded]]:
    """The first `most` candidates that can be loaded and have no nearly equal images A, with what `load` gives."""
    seen: list[np.ndarray] = []
    for pair, distance in candidates:
        if len(seen) == most:
            return
        if (loaded := load(pair)) is None:
            continue
        gray = Image.fromarray(loaded[0]).convert("L").resize(_THUMBNAIL, Image.Resampling.BOX)
        thumbnail = np.asarray(gray, dtype=np.float64)
        if not any(_nearly_equal(thumbnail, other) for other in seen):
            seen.append(thumbnail)
            yield pair, distance, loaded


def _nearly_equal(x: np.ndarray, y: np.ndarray) -> bool:
    # The limit is relative to the variance: dim or flat pictures differ by few levels of gray.
    return bool(np.mean((x - y) ** 2) <= _NEARLY_EQUAL * (x.var() + y.var()) / 2)


def _links(pair: FilePair, place: Path | None) -> str:
    return f"{_link('A', pair.a, place)} {_link('B', pair.b, place)}"


def _link(label: str, file: str, place: Path | None) -> str:
    return f'<a href="{url(file, place)}">{label}</a>'


def _figure(example: Example, top: float, place: Path | None) -> str:
    pair = example.pair
    images = zip("AB", _differing(pair.a, pair.b), (pair.a, pair.b), (example.image0, example.image1))
    panels = [
        f'<a href="{url(file, place)}" title="{shown(file)}"><b>{label}</b> <small>{shown(part)}</small>'
        f"{picture(label, image)}</a>"
        for label, part, file, image in images
    ]
    panels.append(f"<div><b>map</b>{picture('map', colorize(example.map, top))}</div>")
    caption = f"<b>{example.distance:.4f}</b> {shown(pair.name)}"
    return f'<figure><figcaption>{caption}</figcaption><div class="panels">{"".join(panels)}</div></figure>'


def _differing(a: str, b: str) -> tuple[str, str]:
    """Both paths without the first and last parts that they share. Each keeps at least one part."""
    parts_a, parts_b = Path(a).parts, Path(b).parts
    for end in (0, -1):
        while min(len(parts_a), len(parts_b)) > 1 and parts_a[end] == parts_b[end]:
            parts_a, parts_b = (parts[:-1] if end else parts[1:] for parts in (parts_a, parts_b))
    return str(Path(*parts_a)), str(Path(*parts_b))


def _histogram(values: Sequence[float]) -> str:
    if not values:
        return "<p>none</p>"
    step, first, counts = _bins(np.array(values))
    n, most = len(counts), int(counts.max())
    left, top, width, height = 46, 8, 380, 180
    bar, bottom = width / n, top + height
    every = next(k for k in (1, 2, 5, 10) if n / k <= 8)  # bins from label to label, so that labels are round numbers
    lines = max(1, int(_round_up(most / 5)))
    parts = []
    for count in range(0, most + 1, lines):
        y = bottom - count / most * height
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{count}</text>')
    for i, count in enumerate(counts.tolist()):
        tall = count / most * height
        title = f"{(first + i) * step:.6g} to {(first + i + 1) * step:.6g}: {count}"
        parts.append(
            f'<rect x="{left + i * bar:.1f}" y="{bottom - tall:.1f}" width="{bar - 1:.1f}" height="{tall:.1f}">'
            f"<title>{title}</title></rect>"
        )
    for i in range(-first % every, n + 1, every):
        x = left + i * bar
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{(first + i) * step:.6g}</text>')
    middle_x, middle_y = left + width / 2, top + height / 2
    parts.append(f'<text class="axis" x="{middle_x}" y="{bottom + 34}" text-anchor="middle">LPIPS</text>')
    parts.append(
        f'<text class="axis" x="12" y="{middle_y}" transform="rotate(-90 12 {middle_y})" text-anchor="middle">'
        "pairs</text>"
    )
    box = f"0 0 {left + width + 30} {bottom + 40}"
    label = f"Histogram of {len(values)} distances from {min(values):.4g} to {max(values):.4g}"
    return f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _bins(values: np.ndarray) -> tuple[float, int, np.ndarray]:
    """Sorts values into bins of a round width.

    Returns:
        the width, the number of the first bin, and the count of each bin. Bin i begins at i times the width.
    """
    low, high = float(values.min()), float(values.max())
    wanted = min(_BINS, 2 * math.ceil(math.sqrt(len(values))))
    spread, largest = high - low, max(abs(low), abs(high))
    step = _round_up(spread / wanted if spread > _EQUAL * largest else largest / 10 or 0.01)
    numbers = np.floor(values / step + 1e-9).astype(int)  # 3 * 0.1 is a little more than 0.3
    first, last = int(numbers.min()), int(numbers.max())
    missing = max(0, _BINS_SHOWN - (last - first + 1))
    first -= min(missing // 2, first) if low >= 0 else missing // 2
    return step, first, np.bincount(numbers - first, minlength=_BINS_SHOWN)


def _round_up(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `step`, which is positive."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step * (1 - 1e-9))


_RAMP = np.tile(np.linspace(0.0, 1.0, 160, dtype=np.float32), (16, 1))

_FILTER = (
    '<p id="filter" hidden><label>Filter by name '
    '<input type="search" autocomplete="off" spellcheck="false"></label> <output></output></p>'
)
_HEAD = (
    '<th class="distance" data-order="distance" aria-sort="descending">LPIPS</th>'
    '<th class="files">files</th><th data-order="name">image</th>'
)

# The rows come in order of falling distance, so their places hold an order that six decimals would lose.
# A fragment collects sorted rows for the browser to lay them out once.
_SCRIPT = """
"use strict";
const table = document.getElementById("distances");
const body = table.tBodies[0];
const rows = Array.from(body.rows, (row, rank) => ({row, rank, name: row.cells[2].textContent.normalize()}));
const {compare} = new Intl.Collator(undefined, {numeric: true});
const orders = {name: (x, y) => compare(x.name, y.name), distance: (x, y) => y.rank - x.rank};
const headings = table.tHead.querySelectorAll("[data-order]");
for (const heading of headings) {
  const button = document.createElement("button");
  button.textContent = heading.textContent;
  heading.replaceChildren(button);
  button.addEventListener("click", () => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const order = orders[heading.dataset.order];
    rows.sort(ascending ? order : (x, y) => order(y, x));
    const sorted = document.createDocumentFragment();
    for (const {row} of rows) sorted.append(row);
    body.append(sorted);
  });
}

const filter = document.getElementById("filter");
const input = filter.querySelector("input");
input.addEventListener("input", () => {
  const piece = input.value.normalize().toLowerCase();
  let shown = 0;
  for (const {row, name} of rows) {
    row.hidden = !name.toLowerCase().includes(piece);
    shown += !row.hidden;
  }
  filter.querySelector("output").textContent = piece && `${shown} of ${rows.length}`;
});
filter.hidden = false;
"""

_STYLE = """\
.columns section:first-child { flex-basis: 26rem; }
svg { display: block; width: 100%; max-width: 34rem; }
svg text { fill: currentColor; font-size: 12px; font-variant-numeric: tabular-nums; }
svg .axis { fill: var(--muted); }
svg line { stroke: var(--line); }
svg rect { fill: var(--accent); }
.scale { color: var(--muted); }
.ramp { white-space: nowrap; }
.scale img { height: .8em; width: 10em; vertical-align: baseline; margin: 0 .3em; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.75rem 2rem; }
.panels { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .75rem .5rem; align-items: end; }
.panels > * { color: inherit; text-decoration: none; overflow-wrap: anywhere; line-height: 1.3; }
.panels small { color: var(--muted); }
.panels img { display: block; max-width: 100%; max-height: 20rem; margin-top: .2rem; }
.panels img { outline: 1px solid var(--line); outline-offset: -1px; }
#distances, #errors { table-layout: fixed; width: 100%; }
#distances thead th { position: sticky; top: 0; background: Canvas; }
.distance { width: 6.5rem; }
.files { width: 4rem; }
td a { padding: .2rem .15rem; }
tbody tr:hover { background: #8881; }
button { all: unset; cursor: pointer; text-decoration: underline dotted; text-underline-offset: .2em; }
button:focus-visible { outline: 2px solid var(--accent); }
[aria-sort=ascending] > button::after { content: " \\2191"; }
[aria-sort=descending] > button::after { content: " \\2193"; }
input { font: inherit; width: 16rem; max-width: 100%; padding: .2rem .4rem; }
output { color: var(--muted); }
@media (max-width: 40rem) {
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
"""
